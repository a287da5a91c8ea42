"""Weights in other forms than float32 arrays: quantised, or with a low-rank addition."""
