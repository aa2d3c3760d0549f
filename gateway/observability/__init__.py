"""Metrics, the server span and the access log line of an HTTP request."""
