"""Sweeps over config fields."""
