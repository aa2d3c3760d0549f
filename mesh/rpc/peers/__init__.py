"""The replicas of a service that names resolve to: discovery, health, and choice for a call.

`Discovery` looks the names up, `HealthWatch` follows the health of one address, and a
`BalancedChannel` sends each call to a ready peer. The choice of an engine for a prompt belongs to
`orchestrator.routing`, which uses the first two.
"""
