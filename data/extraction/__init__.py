"""From page bytes to clean text: encoding, main content, normalisation, and a guarded process."""
