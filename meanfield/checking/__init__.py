"""Checks of what users give, the ways in which arguments are normalised, and numerics that are the same everywhere."""
