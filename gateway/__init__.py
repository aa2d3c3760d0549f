"""The gateway: HTTP, server-sent events and OpenAI's formats. It knows nothing of tokens."""
