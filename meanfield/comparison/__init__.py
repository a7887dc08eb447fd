"""How answers are compared: observables, deviations, distances, reports."""
