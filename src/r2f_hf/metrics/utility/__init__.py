"""Does the model still know everything else? Metrics of utility."""
