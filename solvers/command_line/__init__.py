"""The command `meanfield`."""
