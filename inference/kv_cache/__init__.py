"""The tensors of the KV cache and the computation of its size.

The scheduler's block manager allocates the blocks.
"""
