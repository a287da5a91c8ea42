"""The data card: one page about a finished corpus."""
