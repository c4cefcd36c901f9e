"""The embedded bundle, from nothing: see run.sh."""
