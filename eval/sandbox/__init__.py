"""Untrusted Python programs, run in confined processes and judged from outside of them."""
