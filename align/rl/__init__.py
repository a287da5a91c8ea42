"""Reinforcement learning of a policy from rewards."""
