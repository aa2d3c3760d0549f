"""The Responses API: requests, input items and responses as pydantic models."""
