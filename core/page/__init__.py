"""Pages to look at: escaped markup, charts without a script, one style sheet."""
