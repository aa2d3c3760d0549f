"""Agent frameworks and gateways that share a database, against real processes (minutes)."""
