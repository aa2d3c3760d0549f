"""Runs a planned step on the device: input tensors, forward pass, CUDA graphs.

The model is in `inference.model`, the sampler in `inference.sampling`.
"""
