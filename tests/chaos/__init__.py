"""Chaos tests: killed processes, broken connections, stalled clients, rolling restarts."""
