"""The account of a request, and the metrics and spans that are made from it.

What all services share, such as exporters and log formats, is in `mesh.observability`.
"""
