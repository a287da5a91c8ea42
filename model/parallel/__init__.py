"""Parallelism and memory: sharding rules, the stack of layers, pipeline, remat."""
