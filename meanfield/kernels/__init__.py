"""Kernels of infinite networks: at their start, by Gaussian averages and recursions over layers, and their spectra (equations 41 to 57)."""
