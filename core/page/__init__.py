"""HTML pages: escaped markup, charts without scripts, one style sheet."""
