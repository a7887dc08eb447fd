"""What is asked: data, network, scaling, training, loss."""
