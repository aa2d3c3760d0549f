"""The library of all four services: settings, errors, gRPC, lifecycle, telemetry, shared values.

A module belongs here if at least two services use it. What a single service does, and anything
that imports a service, does not belong here.
"""
