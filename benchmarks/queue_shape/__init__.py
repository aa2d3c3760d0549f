"""A Redis queue between LLM service and engine: the architecture to compare Weir with."""
