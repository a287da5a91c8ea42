"""Deduplication in bounded memory: exact, near, and long repeated passages."""
