"""The HTTP endpoints, one per module."""
