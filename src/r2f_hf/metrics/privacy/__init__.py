"""Can one tell that it was there? Metrics beside a model that never saw it."""
