"""Data sets as uint8 tensors."""
