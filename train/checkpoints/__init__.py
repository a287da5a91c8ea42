"""Checkpoints: saved in the background, verified on restore, limited in number."""
