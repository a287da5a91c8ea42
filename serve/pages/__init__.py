"""The files of the pages that are served, by a fixed table."""
