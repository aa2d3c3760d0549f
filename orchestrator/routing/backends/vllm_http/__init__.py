"""vLLM by its HTTP server (`vllm serve`): token ids in, token ids out, load from its metrics."""
