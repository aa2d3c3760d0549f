"""Token counts of one request."""

from __future__ import annotations

from typing import NamedTuple

from mesh.v1 import common_pb2


class Usage(NamedTuple):
    """Token counts of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens whose keys and values came from the prefix cache."""


def usage_to_proto(usage: Usage) -> common_pb2.Usage:
    """Convert to protobuf."""
    return common_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )


def usage_from_proto(message: common_pb2.Usage) -> Usage:
    """Convert from protobuf."""
    return Usage(message.prompt_tokens, message.completion_tokens, message.cached_tokens)
