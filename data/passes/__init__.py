"""The passes of a curation, in their order: measure, decide, clean, near, settle, split, write."""
