"""Reading and checking requests: bodies, error messages, unknown fields."""
