"""Classifiers of documents: a linear model over hashed n-grams, its training data, its figures."""
