"""Calls inside one long-lived gRPC stream between two processes (`mesh.v1.MultiplexService`).

One message carries what many calls send in one turn of the event loop, so the cost of gRPC is
shared. `MultiplexChannel` is the caller's side, `MultiplexService` the handlers' side. Without an
open stream calls are made as plain ones.
"""
