"""Conversations to prompts: chat templates, their sandbox and limits."""
