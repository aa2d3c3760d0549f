"""Sampling: the next token of each sequence out of its logits."""
