"""What `python -m data.inspect` tells: one document's story, two corpora side by side."""
