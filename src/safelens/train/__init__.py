"""Training: embedder, probe, captioner and reasoner, each one plain loop."""
