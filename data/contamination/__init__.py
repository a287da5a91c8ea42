"""Decontamination: finds benchmark items in training documents."""
