"""Tokenizers: our own and those of other models, behind one interface."""
