"""Checks of any server that speaks OpenAI's API: `python -m tests.conformance --base-url URL`."""
