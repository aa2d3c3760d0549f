"""The inference service: token ids in, token ids out. It does not handle text."""
