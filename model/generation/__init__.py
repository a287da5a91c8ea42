"""Generation: the KV cache, sampling, and the loop that draws tokens."""
