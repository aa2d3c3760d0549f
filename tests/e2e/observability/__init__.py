"""Traces, logs and metrics of the four processes."""
