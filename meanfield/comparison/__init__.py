"""How answers are compared: observables, deviations and their exponents, distances, reports (equations 13 to 17, 72 and 73)."""
