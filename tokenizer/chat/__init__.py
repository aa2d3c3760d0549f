"""Conversations and chat templates: validation, rendering, sandbox, control tokens."""
