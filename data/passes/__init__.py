"""The passes of a curation, in order: measure, decide, clean, near, settle, split, write."""
