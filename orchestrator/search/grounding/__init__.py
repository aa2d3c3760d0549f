"""Citations in a summary, and the passages that support its sentences."""
