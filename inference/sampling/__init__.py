"""Sampling: chooses the next token of each sequence from the model's logits.

Sampling parameters, logit adjustments, the `Sampler` protocol with its torch implementation, and
log probabilities. The C implementation is in `inference/model/native`, the Triton kernel in
`inference/model/kernels`.
"""
