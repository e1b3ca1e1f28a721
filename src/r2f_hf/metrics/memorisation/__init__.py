"""What does the model still know? Metrics of memorisation."""
