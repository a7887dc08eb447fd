"""How results are kept in files: netCDF, whole or not at all, nothing pickled."""
