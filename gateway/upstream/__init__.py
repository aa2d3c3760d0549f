"""The gateway's client of the orchestrator, and the only place here that knows protobuf."""
