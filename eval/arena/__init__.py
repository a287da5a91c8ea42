"""Arena: votes between models' answers become ratings with intervals, and a page."""
