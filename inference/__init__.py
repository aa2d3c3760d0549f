"""The inference service: token ids in, token ids out. It knows no text at all."""
