"""A checkpoint's tensors by name: one reader for each file format, with one interface.

The conversion to the types and layouts of the kernels belongs to the decoders.
"""
