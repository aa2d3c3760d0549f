"""Metrics and spans of the orchestrator."""
