"""What answers a problem: outputs, kernels at pairs of steps, predictions."""
