"""The values that services exchange, and their mapping to and from protobuf."""
