"""Experiments on small tasks whose results are exact sums, each with its figure."""
