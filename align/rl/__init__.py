"""Reinforcement learning: rewards of tokens, advantages."""
