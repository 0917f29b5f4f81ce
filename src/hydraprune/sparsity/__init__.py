"""Scored masks."""
