"""Optimizers by name, Muon, and learning-rate schedules."""
