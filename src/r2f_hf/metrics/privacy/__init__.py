"""Can one tell that the model once saw the rows? Metrics that compare it with a model that never did."""
