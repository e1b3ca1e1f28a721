"""What a model says: log-probabilities and generated answers."""
