"""Conversations and preferences in the layouts in which others publish them."""
