"""The tokenizer services: one for all models, or one for each model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import grpc.aio

from mesh.errors import ErrorKind, MeshError
from mesh.rpc.peers.balanced_channel import HOLD_SECONDS, REFRESH_SECONDS, BalancedChannel
from mesh.rpc.tls import TlsFiles
from orchestrator.clients.tokenizer import SERVICE, TokenizerClient

FOR_ALL = ""
"""Key for the tokenizer of all models that are not named."""


class TokenizerUpstream(NamedTuple):
    """A tokenizer service."""

    target: str
    channel: BalancedChannel
    client: TokenizerClient


class Tokenizers:
    """Maps a model to its tokenizer. Created by `open_tokenizers`."""

    def __init__(self, upstreams: Mapping[str, TokenizerUpstream]) -> None:
        """`upstreams` by model name or `FOR_ALL`; several models may share one."""
        self._upstreams = upstreams

    @property
    def upstreams(self) -> list[TokenizerUpstream]:
        """Every tokenizer service, without duplicates."""
        return list({upstream.target: upstream for upstream in self._upstreams.values()}.values())

    def channels(self) -> list[grpc.aio.Channel]:
        """The channels to all known tokenizers, for calls to each of them."""
        return [channel for each in self.upstreams for channel in each.channel.channels()]

    def target_of(self, model: str) -> str | None:
        """Addresses of the model's tokenizer; None if it has none."""
        upstream = self._upstreams.get(model) or self._upstreams.get(FOR_ALL)
        return None if upstream is None else upstream.target

    def vocabulary_of(self, model: str) -> str:
        """Digest of the vocabulary of the model's tokenizer; empty if it is not known."""
        upstream = self._upstreams.get(model) or self._upstreams.get(FOR_ALL)
        return "" if upstream is None else upstream.client.vocabulary_sha256

    def of(self, model: str) -> TokenizerClient:
        """Client of the model's tokenizer. Raises MeshError (UNAVAILABLE) if it has none."""
        upstream = self._upstreams.get(model) or self._upstreams.get(FOR_ALL)
        if upstream is None:
            message = f"no tokenizer is set for model {model!r}; see TOKENIZER_HOST"
            raise MeshError(ErrorKind.UNAVAILABLE, message)
        return upstream.client


@asynccontextmanager
async def open_tokenizers(
    targets: Mapping[str, str],
    tls: TlsFiles,
    refresh_seconds: float = REFRESH_SECONDS,
    hold_seconds: float = HOLD_SECONDS,
) -> AsyncIterator[Tokenizers]:
    """Opens channels to `targets` (by model name or `FOR_ALL`); closes them after the block.

    The times are those of `BalancedChannel`.
    """
    async with AsyncExitStack() as stack:
        opened: dict[str, TokenizerUpstream] = {}
        for target in dict.fromkeys(targets.values()):
            channel = BalancedChannel(
                target, SERVICE, tls, refresh_seconds=refresh_seconds, hold_seconds=hold_seconds
            )
            await stack.enter_async_context(channel.running())
            opened[target] = TokenizerUpstream(target, channel, TokenizerClient(channel))
        yield Tokenizers({model: opened[target] for model, target in targets.items()})
