"""What finite width adds: variance and bias of networks about their limit, known before one is trained."""
