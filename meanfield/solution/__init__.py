"""What answers a problem: outputs, kernels at pairs of steps, predictions (equations 10, 11, 35 and 53)."""
