"""The LLM service: admits, retrieves, has the prompt encoded, relays tokens as text."""
