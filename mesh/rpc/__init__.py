"""gRPC for all services: servers, channels, interceptors, transport options, TLS, addresses.

It knows nothing of what the calls mean.
"""
