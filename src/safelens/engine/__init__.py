"""Where and when the cascade's stages run, if not in one process; what they do is the matter of `cascade`."""
