"""What a video costs: SafeLens beside the ways in which one would otherwise run the same models."""
