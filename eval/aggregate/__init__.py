"""Aggregates: tables of models by tasks, mean win rate, CORE, learning curves."""
