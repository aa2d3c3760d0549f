"""What clients send and get, as pydantic models: the source of validation and of OpenAPI."""
