"""Helpers of the end-to-end tests: processes, clients, readers of their output. No tests."""
