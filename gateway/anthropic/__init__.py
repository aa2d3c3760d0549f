"""Anthropic's response formats: messages, stream events, errors."""
