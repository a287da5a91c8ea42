"""Decontamination: benchmark items, found in training documents."""
