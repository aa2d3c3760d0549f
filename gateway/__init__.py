"""The gateway: HTTP, server-sent events and OpenAI's formats. It does not handle token ids."""
