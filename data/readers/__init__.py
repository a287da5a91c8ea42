"""Raw inputs of any kind, from any place, in units: `units` plans them, `read` reads them."""
