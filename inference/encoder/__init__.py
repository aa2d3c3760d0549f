"""Encoders of the BERT family: embeddings and scores of pairs.

An encoder reads a whole text at once, so it has no KV cache, no scheduler and no steps of
generation: a queue of inputs, batches of them, and one forward pass for each batch.
"""
