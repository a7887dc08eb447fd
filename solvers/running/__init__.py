"""What all solvers share: the loop through training time, its steps, what a solver is, how runs end, go on, are kept and divided."""
