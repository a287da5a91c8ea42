"""The ground floor: entry points, artifacts, progress."""
