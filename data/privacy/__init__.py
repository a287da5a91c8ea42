"""Personal data and secrets: found, then redacted, masked, or the document dropped."""
