"""Duplicates: exact, near, and long repeated passages, found in bounded memory."""
