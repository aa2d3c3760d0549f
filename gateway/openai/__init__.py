"""OpenAI's response formats: chunks, choices, usage."""
