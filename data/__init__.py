"""From raw bytes to batches."""
