"""The older shape, built as well as we can: a queue in Redis between LLM service and engine."""
