"""`python -m safelens`: the command line, for launchers that start modules."""

from safelens.cli import app

app()
