"""Recipes, stages, runs and comparisons."""
