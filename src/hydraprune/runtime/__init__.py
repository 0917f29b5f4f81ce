"""The compact file format."""
