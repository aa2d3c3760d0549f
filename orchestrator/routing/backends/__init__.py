"""The protocols of inference engines: what the orchestrator needs of an engine, one module each.

`backend` is the interface, `target` the addresses that name a protocol, `connection` finds the
protocol of an address. Which engine gets a request is decided in `orchestrator.routing`.
"""
