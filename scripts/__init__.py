"""Quickstart, tests, benchmarks and the report."""
