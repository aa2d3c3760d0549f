"""Weir in front of a real vLLM on the CPU; `make test-vllm` makes the environment and runs them."""
