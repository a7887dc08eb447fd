"""What a network of finite width adds to its limit, known before one is trained: variance, bias, the width for an error."""
