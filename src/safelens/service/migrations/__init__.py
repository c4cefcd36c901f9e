"""Alembic's folder: the way from one version of the tables to the next."""
