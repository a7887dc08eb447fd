"""Kernels of infinite networks at their start: Gaussian averages, recursions over layers, spectra (equations 41 to 57)."""
