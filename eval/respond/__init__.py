"""Responders to prompts: a loaded model, or a server."""
