"""Observation of a run without effect on it: metrics, goodput, profiles, compilations."""
