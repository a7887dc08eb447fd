"""How weights, outputs and learning rates scale with the width."""
