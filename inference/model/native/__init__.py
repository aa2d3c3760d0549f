"""The decoder and sampler for CPUs with AVX2 or AVX-512, in C, called through ctypes.

The C code computes; Python owns the memory, packs the weights and compiles the library.
"""
