"""Studies that compare many runs."""
