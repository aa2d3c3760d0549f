"""Log probabilities of token ids, as engines report them."""

from __future__ import annotations

from typing import NamedTuple

from mesh.v1 import common_pb2


class TokenLogprob(NamedTuple):
    """A token, its log probability before any sampling filter, and the likeliest alternatives."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """Ids with their log probabilities, likeliest first; as many as the request asks for."""


def token_logprob_to_proto(logprob: TokenLogprob) -> common_pb2.TokenLogprob:
    """Convert to protobuf."""
    top = [common_pb2.TopLogprob(token_id=token, logprob=value) for token, value in logprob.top]
    return common_pb2.TokenLogprob(token_id=logprob.token_id, logprob=logprob.logprob, top=top)


def token_logprob_from_proto(message: common_pb2.TokenLogprob) -> TokenLogprob:
    """Convert from protobuf."""
    top = tuple((each.token_id, each.logprob) for each in message.top)
    return TokenLogprob(message.token_id, message.logprob, top)
