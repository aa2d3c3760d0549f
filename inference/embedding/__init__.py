"""Embeddings: the queue of calls, and the model that turns token ids into vectors."""
