"""A search: passages found in time, and as much of them in the prompt as there is room for."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from opentelemetry.trace import Span
from tokenizers import Tokenizer

from mesh.context import annotate
from mesh.errors import invalid
from mesh.observability import semconv, telemetry, tracing
from mesh.observability.metrics import exemplar
from mesh.observability.semconv import Operation, Outcome
from orchestrator.clients.tokenizer import ChatMessage, ChatPrompt, Encoded
from orchestrator.clients.tokenizers import Tokenizers
from orchestrator.generation import ModelInfo
from orchestrator.observability import metrics
from orchestrator.search.grounding.sentences import split_sentences
from orchestrator.search.prompt import Passage, format_source, search_messages
from orchestrator.search.retrieval import Result, Retriever
from orchestrator.search.selection import NUM_CANDIDATES, for_prompt, select

logger = logging.getLogger("orchestrator.search.search")

FRAME_TOKENS = 128
"""Room for the instructions and the template around the passages, a first guess."""


class Retrieved(NamedTuple):
    """What a search gave; the results that the summary rests on come first."""

    results: Sequence[Result]
    failed: bool = False
    """Nothing could be searched, so that there may be more than nothing."""


class SummaryPrompt(NamedTuple):
    """A prompt, and how many of the results are in it: the first ones."""

    encoded: Encoded
    num_passages: int


class Search:
    """Finds passages and makes the prompt that asks for their summary."""

    def __init__(
        self, retriever: Retriever, tokenizers: Tokenizers, timeout_seconds: float
    ) -> None:
        self._retriever = retriever
        self._tokenizers = tokenizers
        self._timeout_seconds = timeout_seconds

    async def find(self, query: str, num_results: int, safe_search: bool) -> Retrieved:
        """The passages for `query`; none if the search fails or takes too long."""
        started = time.monotonic()
        with tracing.stage(
            Operation.RETRIEVAL, {semconv.GEN_AI_OPERATION_NAME: Operation.RETRIEVAL}
        ) as span:
            outcome = "failed"
            results: list[Result] = []
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    found = await self._retriever.search(query, NUM_CANDIDATES, safe_search)
                results = select(found, num_results)
                outcome = "found" if results else "empty"
            except TimeoutError:
                outcome = "timeout"
                logger.warning("retrieval timed out", extra={"limit": self._timeout_seconds})
            except Exception:
                # Whatever is wrong with the search, the request goes on and says that nothing
                # could be searched.
                logger.exception("retrieval failed")
            metrics.RETRIEVAL.labels(self._retriever.name, outcome).observe(
                time.monotonic() - started, exemplar()
            )
            _tell(span, query, results, outcome)
            annotate(num_results=len(results), retrieval=outcome)
            return Retrieved(results, failed=outcome in ("timeout", "failed"))

    async def encode(
        self, query: str, results: Sequence[Result], max_tokens: int, model: ModelInfo
    ) -> SummaryPrompt:
        """The prompt's ids, shortened from the end until `max_tokens` more fit the context.

        Raises MeshError (INVALID_REQUEST) where `max_tokens` alone leaves no room.
        """
        room = model.context_length - max_tokens
        client = self._tokenizers.of(model.name)
        tokenizer = (await client.current()).tokenizer
        passages = [Passage(result.title, result.text) for result in for_prompt(results)]
        # What an empty prompt costs is known only once it is encoded.
        frame = FRAME_TOKENS
        while True:
            fitting = await asyncio.to_thread(shorten, passages, room - frame, tokenizer)
            messages = search_messages(query, fitting)
            prompt = ChatPrompt(
                messages=[ChatMessage(role=m.role, content=m.content) for m in messages]
            )
            encoded = await client.encode_chat(prompt)
            excess = len(encoded.token_ids) - room
            if excess <= 0:
                return SummaryPrompt(encoded, len(fitting))
            if not fitting:
                raise invalid(
                    "max_tokens",
                    f"max_tokens must leave room for the question in the context of "
                    f"{model.context_length} tokens, given {max_tokens}",
                )
            frame += excess


def _tell(span: Span, query: str, results: Sequence[Result], outcome: str) -> None:
    """The span says what came of it; that a search failed does not fail its request."""
    span.set_attributes({semconv.RETRIEVAL_OUTCOME: outcome, semconv.NUM_RESULTS: len(results)})
    if outcome == "timeout":
        tracing.set_outcome(span, Outcome.DEADLINE, outcome)
    elif outcome == "failed":
        tracing.set_outcome(span, Outcome.FAILED, outcome)
    if span.is_recording() and telemetry.captures_content():
        documents = [{"id": result.url, "score": result.score} for result in results]
        span.set_attribute(semconv.GEN_AI_RETRIEVAL_QUERY_TEXT, query)
        span.set_attribute(semconv.GEN_AI_RETRIEVAL_DOCUMENTS, json.dumps(documents))


def shorten(passages: Sequence[Passage], room: int, tokenizer: Tokenizer) -> list[Passage]:
    """The passages, and of each the first sentences, that together take about `room` tokens.

    Later passages give way first; a passage keeps its place and number, so none is skipped.
    Blocks, mostly without the interpreter's lock.
    """
    fitting: list[Passage] = []
    for number, passage in enumerate(passages, 1):
        sentences = split_sentences(passage.text)
        title = format_source(number, Passage(passage.title, "")) + "\n\n"
        lines = [title, *(f"{sentence} [{number}]\n" for sentence in sentences)]
        # Only the batch form lets other threads run meanwhile.
        encodings = tokenizer.encode_batch_fast(lines, add_special_tokens=False)
        # One more each, for a token may come apart where lines are joined.
        ends = list(accumulate(len(encoding.ids) + 1 for encoding in encodings))
        kept = sum(end <= room for end in ends) - 1
        if kept < 1:
            break
        room -= ends[kept]
        fitting.append(Passage(passage.title, " ".join(sentences[:kept])))
        if kept < len(sentences):
            break
    return fitting
