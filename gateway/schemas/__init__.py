"""Requests and responses as pydantic models, used for validation and for OpenAPI."""
