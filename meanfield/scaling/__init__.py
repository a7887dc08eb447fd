"""How outputs and learning rates scale with the width, and which limit follows (equations 3 to 5, 44, 45, 61 to 66)."""
