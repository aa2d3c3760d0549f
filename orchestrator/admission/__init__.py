"""Decides whether a request is accepted, and tracks the accepted ones: limits, fairness,
timeouts, validation.
"""
