"""Models in GGUF files: their metadata as the configuration files of a Hugging Face model folder.

The services read only such folders, so that a GGUF file is converted in one place. Reading the
tensors belongs to inference. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""
