"""The limit of deep networks: the causal sweep, the fixed point over the whole window, the certificate (equations 20 to 34)."""
