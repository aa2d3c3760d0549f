"""gRPC for all services: servers, channels, interceptors, transport options, TLS, addresses.

Everything here is independent of what the calls mean. The values that calls carry belong in
`mesh.protocol`.
"""
