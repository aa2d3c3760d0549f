"""The tokenizers behind this orchestrator: one for all models, or one each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import grpc.aio

from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import open_channel
from mesh.rpc.tls import TlsFiles
from orchestrator.clients.tokenizer import TokenizerClient

FOR_ALL = ""
"""In the place of a model's name: the tokenizer of every model that has none of its own."""


class TokenizerUpstream(NamedTuple):
    """A tokenizer service."""

    target: str
    channel: grpc.aio.Channel
    client: TokenizerClient


class Tokenizers:
    """Knows which model's text is encoded where. `open_tokenizers` makes one."""

    def __init__(self, upstreams: Mapping[str, TokenizerUpstream]) -> None:
        """`upstreams` by model, or under `FOR_ALL`; models may share one."""
        self._upstreams = upstreams

    @property
    def upstreams(self) -> list[TokenizerUpstream]:
        """Each service once."""
        return list({upstream.target: upstream for upstream in self._upstreams.values()}.values())

    def target_of(self, model: str) -> str | None:
        """Where the model's tokenizer is; None: nowhere."""
        upstream = self._upstreams.get(model) or self._upstreams.get(FOR_ALL)
        return None if upstream is None else upstream.target

    def of(self, model: str) -> TokenizerClient:
        """The model's tokenizer. Raises MeshError (UNAVAILABLE)."""
        upstream = self._upstreams.get(model) or self._upstreams.get(FOR_ALL)
        if upstream is None:
            message = f"no tokenizer is set for model {model!r}; see TOKENIZER_HOST"
            raise MeshError(ErrorKind.UNAVAILABLE, message)
        return upstream.client


@asynccontextmanager
async def open_tokenizers(targets: Mapping[str, str], tls: TlsFiles) -> AsyncIterator[Tokenizers]:
    """Tokenizers at `targets`, HOST:PORT by model or under `FOR_ALL`; channels close at the end."""
    async with AsyncExitStack() as stack:
        opened: dict[str, TokenizerUpstream] = {}
        for target in dict.fromkeys(targets.values()):
            channel = open_channel(target, tls, balanced=True)
            stack.push_async_callback(channel.close)
            opened[target] = TokenizerUpstream(target, channel, TokenizerClient(channel))
        yield Tokenizers({model: opened[target] for model, target in targets.items()})
