"""Ladders: runs of several sizes and lengths, and the forecast of a larger one."""
