"""The corpus that needs no download: the Python environment itself, as a small web."""
