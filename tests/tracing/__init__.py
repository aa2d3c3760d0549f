"""Traces of hundreds of requests at once, in a target of their own: `make test-tracing`."""
