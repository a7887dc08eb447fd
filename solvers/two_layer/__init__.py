"""Limits of two-layer networks: flows of particle measures, infinite logits, the variance ahead (equations 6 to 9, 18, 67 to 71)."""
