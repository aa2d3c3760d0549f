"""Traces, metrics and logs, and the names that they use."""
