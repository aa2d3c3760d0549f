"""Paged attention as Triton kernels: rotary embedding, attention, and combining split results."""
