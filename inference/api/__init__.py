"""The gRPC service on an engine, its metrics and its spans."""
