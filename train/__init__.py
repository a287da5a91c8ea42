"""Losses, optimizers, the step, the one loop, pretraining."""
