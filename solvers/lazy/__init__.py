"""The lazy limit: training with the kernel of step 0."""
