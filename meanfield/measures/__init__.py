"""Particle measures: initial clouds, and the two sums over particles by three engines (equations 6 to 9)."""
