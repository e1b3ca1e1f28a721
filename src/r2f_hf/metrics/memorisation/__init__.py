"""Is it gone? Metrics of what a model still knows."""
