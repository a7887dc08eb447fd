"""What a network is: activations, perceptrons, convolutions, and the names of what its layers give."""
