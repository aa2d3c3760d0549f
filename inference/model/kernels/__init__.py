"""The decoder's operations as Triton kernels, one a file; imported only where they are used."""
