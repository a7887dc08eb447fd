"""What all solvers share: the loop through training time, its steps, records, ends and resumptions."""
