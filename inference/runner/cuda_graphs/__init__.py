"""Decode steps captured as CUDA graphs: the model wrapper, its buffers and the capture."""
