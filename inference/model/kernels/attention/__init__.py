"""Triton kernels of the attention."""
