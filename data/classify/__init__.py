"""Document classifiers: a linear model over hashed n-grams, its training data, its metrics."""
