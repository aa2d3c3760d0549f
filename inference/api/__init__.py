"""The gRPC service, and what is recorded of its requests and steps: metrics, spans, log fields.

Nothing here computes tokens; that is the engine.
"""
