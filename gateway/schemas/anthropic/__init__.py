"""Schemas of the Messages API: content blocks, tools, requests, responses."""
