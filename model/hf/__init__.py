"""Files of weights of other programs: safetensors and GGUF."""
