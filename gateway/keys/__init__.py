"""API keys: the key file, the keys that are valid now, and the limits of each."""
