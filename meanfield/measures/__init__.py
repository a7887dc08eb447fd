"""Particle measures and the two sums over their particles, by three engines (equations 6 to 9)."""
