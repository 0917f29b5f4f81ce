"""Training objectives: what a batch costs."""
