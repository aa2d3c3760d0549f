"""The layers of a decoder and torch's implementation of their operations.

Triton kernels are in `inference/model/kernels`, native code in `inference/model/native`.
"""
