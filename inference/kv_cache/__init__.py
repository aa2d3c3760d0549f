"""The tensors of the KV cache and their size."""
