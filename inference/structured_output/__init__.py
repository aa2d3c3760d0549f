"""Structured output: token masks from JSON schemas, regular expressions and grammars.

The engine's sampling applies the masks; HTTP and gRPC formats of a constraint belong to the
services' APIs.
"""
