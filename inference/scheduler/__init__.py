"""Continuous batching: which sequences a step runs, their KV-cache blocks and speculative tokens.

Pure Python policy. Nothing here imports torch, reads a clock or starts a thread.
"""
