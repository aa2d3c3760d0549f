"""Log probabilities of token ids, as engines report them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

from mesh.v1 import common_pb2


class TokenLogprob(NamedTuple):
    """A token, its log probability before any sampling filter, and the likeliest alternatives."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """Ids with their log probabilities, likeliest first; as many as the request asks for."""


class LazyLogprobs(Sequence[TokenLogprob]):
    """Log probabilities that are converted from protobuf when they are read: a long prompt has
    thousands, and converting them together would occupy the event loop."""

    def __init__(self, messages: Sequence[common_pb2.TokenLogprob]) -> None:
        self._messages = messages

    def __len__(self) -> int:
        return len(self._messages)

    @overload
    def __getitem__(self, place: int) -> TokenLogprob: ...
    @overload
    def __getitem__(self, place: slice) -> list[TokenLogprob]: ...
    def __getitem__(self, place: int | slice) -> TokenLogprob | list[TokenLogprob]:
        if isinstance(place, slice):
            return [token_logprob_from_proto(each) for each in self._messages[place]]
        return token_logprob_from_proto(self._messages[place])


def token_logprob_to_proto(logprob: TokenLogprob) -> common_pb2.TokenLogprob:
    """Convert to protobuf."""
    top = [common_pb2.TopLogprob(token_id=token, logprob=value) for token, value in logprob.top]
    return common_pb2.TokenLogprob(token_id=logprob.token_id, logprob=logprob.logprob, top=top)


def token_logprob_from_proto(message: common_pb2.TokenLogprob) -> TokenLogprob:
    """Convert from protobuf."""
    top = tuple((each.token_id, each.logprob) for each in message.top)
    return TokenLogprob(message.token_id, message.logprob, top)
