"""Architectures, sharding, generation and model directories."""
