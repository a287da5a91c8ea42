"""Chat templates of other models: Jinja, rendered in a process with limits."""
