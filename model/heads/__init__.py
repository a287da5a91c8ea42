"""Heads: from hidden states to what a loss or a sampler needs."""
