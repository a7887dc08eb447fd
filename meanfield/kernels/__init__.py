"""Kernels in the lazy limit: Gaussian averages, recursions, spectra."""
