"""Policies read category by category, and videos thinned to what the policy looks at (arXiv 2412.06878)."""
