"""The client of the orchestrator; no other package of the gateway uses protobuf types."""
