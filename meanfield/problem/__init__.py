"""What is asked: data, training and loss (equation 2), which with a network and its scaling are a Problem."""
