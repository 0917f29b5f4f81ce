"""Bounds on what a network can output: interval and linear relaxations."""
