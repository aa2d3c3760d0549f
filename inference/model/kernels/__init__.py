"""The decoder's operations as Triton kernels, one per file.

Imported only if they are used: torch's CPU builds come without Triton.
"""
