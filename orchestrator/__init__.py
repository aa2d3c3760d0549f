"""The LLM service: admits requests, retrieves documents, runs generations, streams their text."""
