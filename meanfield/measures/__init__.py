"""Particle measures and sums over their particles."""
