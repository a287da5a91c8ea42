"""Signals of a document, and the rules that decide on them."""
