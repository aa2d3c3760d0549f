"""Conversations and chat templates: validation, rendering, sandbox, limits, control tokens."""
