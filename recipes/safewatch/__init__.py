"""Algorithm 1 of the paper at full size; see README.md."""
