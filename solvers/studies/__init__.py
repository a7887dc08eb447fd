"""What many runs tell: powers of the width, the best proxy (equations 72 and 73)."""
