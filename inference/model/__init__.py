"""Models: configuration, weights, layers, kernels, and building an engine from a model's folder.

Scheduling, sampling and the KV cache have their own packages.
"""
