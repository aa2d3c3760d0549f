"""Embeddings: their calls, their queue beside generation, and the pooling of hidden states."""
