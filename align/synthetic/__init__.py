"""Synthetic documents: prompts, and filters of the answers."""
