"""Accepts or refuses requests, and tracks the accepted ones: limits, fair shares, checks,
timeouts.

Nothing here chooses a replica; that is `orchestrator.routing`.
"""
