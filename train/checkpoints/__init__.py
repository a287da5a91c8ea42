"""Checkpoints: saved in the background, verified on restore, bounded in number."""
