"""The OpenAI-compatible server: routes, checks of requests, and the workers that own engines."""
