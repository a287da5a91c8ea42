"""Quickstart, tests, benchmarks, experiments and the report."""
