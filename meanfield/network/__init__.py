"""What a network is: activations, perceptrons (equation 1), convolutions (46), and the names of what its layers give."""
