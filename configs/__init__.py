"""One file per experiment; each docstring is a lab note."""
