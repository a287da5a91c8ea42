"""What answers prompts: a loaded model, or a server behind an endpoint."""
