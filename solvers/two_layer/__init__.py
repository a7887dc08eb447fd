"""The limit of two-layer networks: flows of particle measures."""
