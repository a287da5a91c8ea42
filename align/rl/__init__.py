"""Reinforcement learning: exact sums on small tasks, advantages, rollouts."""
