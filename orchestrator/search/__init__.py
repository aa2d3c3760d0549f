"""Search: retrieval, choice of passages, the prompt, and the summary."""
