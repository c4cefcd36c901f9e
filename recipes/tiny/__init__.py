"""The embedded bundle, from nothing: `python -m recipes.tiny`."""
