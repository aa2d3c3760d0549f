"""The other gateways: what API keys use there, and streams that run there.

Gateways find one another by DNS and call each other over gRPC. Without any of it a gateway works
alone.
"""
