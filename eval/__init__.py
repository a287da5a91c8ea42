"""Tasks, scoring and comparison of models."""
