"""Published benchmarks, read from local files, with their literal prompts."""
