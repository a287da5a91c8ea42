"""Labels by people: items, who gets which, how they are stored, and the page's server."""
