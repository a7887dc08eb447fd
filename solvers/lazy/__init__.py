"""The lazy limit: training with the kernel of step 0, from a draw or over the whole random start (equations 51 to 58)."""
