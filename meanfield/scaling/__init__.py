"""Scaling with the width: of outputs and learning rates, and which limit follows (equations 3 to 5, 44, 45, 61 to 66)."""
