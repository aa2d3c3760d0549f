"""An answer to a conversation with sources: its prompt, and the citations of its text."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from tokenizers import Tokenizer

from mesh.protocol.chat import ChatMessage, ChatPrompt
from mesh.protocol.deltas import Delta
from mesh.protocol.finish import GenerationFinish
from mesh.protocol.search import Source
from mesh.protocol.summary import Citation
from orchestrator.generation import Progress
from orchestrator.search.grounding.citations import CitationFilter
from orchestrator.search.grounding.grounding import ground
from orchestrator.search.prompt import INSTRUCTIONS, Passage, format_source, search_messages
from orchestrator.search.search import PROMPT_OVERHEAD_TOKENS, fitted_passages
from orchestrator.text.preparation import PreparedPrompt

_SYSTEM_ROLES = ("system", "developer")

Prepare = Callable[[ChatPrompt], Awaitable[PreparedPrompt]]


class GroundedPrompt(NamedTuple):
    """An encoded prompt, and how many sources it quotes: the first `num_passages` of them."""

    prepared: PreparedPrompt
    num_passages: int


async def ground_prompt(
    prompt: ChatPrompt,
    sources: Sequence[Source],
    limit: int,
    tokenizer: Tokenizer,
    prepare: Prepare,
) -> GroundedPrompt:
    """Prepare `prompt` with as many sentences of `sources` as fit into `limit` tokens.

    The result is longer than `limit` if the conversation alone is. Raises MeshError.
    """
    passages = [Passage(_plain(source.title), _plain(source.snippet)) for source in sources]
    # The real length of the conversation is known only after encoding; the estimate is corrected.
    overhead = PROMPT_OVERHEAD_TOKENS
    while True:
        fitting = await fitted_passages(passages, limit - overhead, tokenizer)
        prepared = await prepare(with_passages(prompt, fitting))
        excess = len(prepared.encoded.token_ids) - limit
        if excess <= 0 or not fitting:
            return GroundedPrompt(prepared, len(fitting))
        overhead += excess


def with_passages(prompt: ChatPrompt, passages: Sequence[Passage]) -> ChatPrompt:
    """The conversation with passages, numbered from 1, in its last message.

    A user's message becomes the question of a search; the result of a tool has the passages only.
    """
    *before, last = prompt.messages
    if last.role == "tool":
        sources = [format_source(number, passage) for number, passage in enumerate(passages, 1)]
        content = "\n\n".join([INSTRUCTIONS, "Sources:", *(sources or ["None."])])
        return replace(prompt, messages=(*before, replace(last, content=content)))
    instructions, question = search_messages(last.content, passages)
    if before and before[0].role in _SYSTEM_ROLES:
        content = f"{before[0].content}\n\n{instructions.content}"
        before[0] = replace(before[0], content=content)
    else:
        before.insert(0, ChatMessage(role=instructions.role, content=instructions.content))
    return replace(prompt, messages=(*before, replace(last, content=question.content)))


def _plain(text: str) -> str:
    """The text of a source, whose markup is escaped for display."""
    return text.replace("&lt;", "<").replace("&amp;", "&")


class CheckedProgress(NamedTuple):
    """A message of a grounded answer; with the finish the citations of all sentences."""

    progress: Progress
    citations: Sequence[Citation] = ()


class GroundedAnswer:
    """Removes citations of unknown sources from an answer, and finds support for the others."""

    def __init__(self, sources: Sequence[Source]) -> None:
        """`sources` are those in the prompt, which the answer may cite."""
        self._snippets = {source.position: source.snippet for source in sources}
        self._filter = CitationFilter(self._snippets)
        self._texts: list[str] = []
        self._num_held = 0
        """Tokens of text that the filter holds back."""

    async def check(self, progress: Progress) -> CheckedProgress | None:
        """The message with checked text; None if nothing is left of it."""
        started, delta, finish = progress
        if delta is not None:
            delta = self._push(delta)
        if finish is None:
            if started is None and delta is None:
                return None
            return CheckedProgress(Progress(started, delta))
        return await self._finish(Progress(started, delta, finish), finish)

    async def _finish(self, progress: Progress, finish: GenerationFinish) -> CheckedProgress:
        rest = self._filter.flush()
        delta = progress.delta
        if rest or self._num_held:
            self._texts.append(rest)
            before = delta or Delta("", 0)
            delta = before._replace(
                text=before.text + rest, num_tokens=before.num_tokens + self._num_held
            )
        text = "".join(self._texts)
        # In a thread: a long text takes tens of milliseconds.
        citations = await asyncio.to_thread(ground, text, self._snippets)
        return CheckedProgress(Progress(progress.started, delta, finish), citations)

    def _push(self, delta: Delta) -> Delta | None:
        text = self._filter.push(delta.text)
        self._texts.append(text)
        if not (text or delta.reasoning or delta.tool_calls):
            self._num_held += delta.num_tokens
            return None
        num_tokens, self._num_held = delta.num_tokens + self._num_held, 0
        return delta._replace(text=text, num_tokens=num_tokens, logprobs=())
