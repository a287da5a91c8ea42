"""Contamination: which benchmark items a corpus holds, and whether it matters to scores."""
