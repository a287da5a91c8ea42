"""Attention: rotary positions, masks, the KV cache, and the backends that compute it."""
