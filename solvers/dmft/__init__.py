"""The limit of deep networks: the causal sweep and the fixed point."""
