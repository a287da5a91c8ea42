"""Benchmarks against the libraries that users would use instead."""
