"""Embeddings: token ids to vectors."""
