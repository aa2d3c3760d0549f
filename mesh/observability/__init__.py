"""Traces, metrics and logs of all services, and their attribute names.

What a single service measures belongs to that service's own observability package.
"""
