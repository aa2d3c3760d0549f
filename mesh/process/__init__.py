"""The life of a service's process: settings, start and drain, garbage collection, scheduling.

Everything here is independent of what the service does. gRPC belongs in `mesh.rpc`, logs and
metrics in `mesh.observability`.
"""
