"""How results are kept in files."""
