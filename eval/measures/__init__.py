"""Measures: likelihood, multiple choice, generated answers."""
