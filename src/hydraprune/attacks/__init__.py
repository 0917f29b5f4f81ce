"""Norms and one PGD loop."""
