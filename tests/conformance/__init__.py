"""Checks any server with OpenAI's API: `python -m tests.conformance --base-url URL`."""
