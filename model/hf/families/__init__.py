"""One table of names per family of transformers."""
