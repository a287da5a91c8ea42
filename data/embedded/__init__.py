"""The embedded corpus, generated from the Python environment without a download."""
