"""The tokens of a prompt, for clients that count or cut texts by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Tokenizer

from mesh.protocol.chat import ChatPrompt
from orchestrator.clients.tokenizer import TokenizerClient
from orchestrator.text.tools.constraint import parse_tools


class Tokens(NamedTuple):
    """Token ids, and the tokenizer that made them."""

    token_ids: Sequence[int]
    tokenizer: Tokenizer

    def spelled(self) -> list[str]:
        """The token of each id as it is spelled in the vocabulary: `Ġriver`, `<0x0A>`."""
        return [self.tokenizer.id_to_token(token_id) or "" for token_id in self.token_ids]


async def encode(
    tokenizer: TokenizerClient, prompt: ChatPrompt | str, *, add_special_tokens: bool
) -> Tokens:
    """Encodes a prompt of any length. Raises MeshError if the template or a tool is refused."""
    if isinstance(prompt, ChatPrompt):
        parse_tools(prompt.tools_json)
        encoded = await tokenizer.encode_chat(prompt, add_special_tokens=add_special_tokens)
    else:
        encoded = await tokenizer.encode_text(prompt, add_special_tokens=add_special_tokens)
    # The one that has encoded, because the client loads it before it returns.
    local = await tokenizer.current()
    return Tokens(encoded.token_ids, local.tokenizer)
