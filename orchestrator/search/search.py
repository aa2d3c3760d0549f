"""Retrieves passages for a query within a timeout, and fits them into the summary prompt."""

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
from mesh.errors import ErrorKind, MeshError, context_too_long_message
from mesh.observability import semconv, telemetry, tracing
from mesh.observability.metrics import exemplar
from mesh.observability.semconv import Operation, Outcome
from mesh.protocol.chat import ChatMessage, ChatPrompt
from orchestrator.clients.tokenizer import Encoded
from orchestrator.clients.tokenizers import Tokenizers
from orchestrator.generation import ModelInfo
from orchestrator.observability import metrics
from orchestrator.search.grounding.sentences import split_sentences
from orchestrator.search.prompt import Passage, format_source, search_messages
from orchestrator.search.retrieval import Retriever, SearchResult
from orchestrator.search.selection import NUM_CANDIDATES, select_for_prompt, select_results

logger = logging.getLogger("orchestrator.search.search")

PROMPT_OVERHEAD_TOKENS = 128
"""First estimate of the tokens that instructions and chat template add to the passages."""


class RetrievalOutcome(NamedTuple):
    """The results of one retrieval; those that the prompt quotes come first."""

    results: Sequence[SearchResult]
    failed: bool = False
    """The retrieval failed or timed out, so an empty list does not mean that nothing matches."""


class SummaryPrompt(NamedTuple):
    """An encoded prompt, and how many results it quotes: the first `num_passages` of them."""

    encoded: Encoded
    num_passages: int


class Search:
    """Retrieves passages and builds the prompt for their summary."""

    def __init__(
        self, retriever: Retriever, tokenizers: Tokenizers, timeout_seconds: float
    ) -> None:
        self._retriever = retriever
        self._tokenizers = tokenizers
        self._timeout_seconds = timeout_seconds

    async def retrieve(self, query: str, num_results: int, safe_search: bool) -> RetrievalOutcome:
        """Returns at most `num_results` passages; none if the retrieval fails or times out."""
        started = time.monotonic()
        with tracing.stage(
            Operation.RETRIEVAL, {semconv.GEN_AI_OPERATION_NAME: Operation.RETRIEVAL}
        ) as span:
            outcome = "failed"
            results: list[SearchResult] = []
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    found = await self._retriever.search(query, NUM_CANDIDATES, safe_search)
                # In a thread: the words of 40 passages are compared in pairs.
                results = await asyncio.to_thread(
                    lambda: select_results([each.shortened() for each in found], num_results)
                )
                outcome = "found" if results else "empty"
            except TimeoutError:
                outcome = "timeout"
                logger.warning("retrieval timed out", extra={"limit": self._timeout_seconds})
            except Exception:
                # The request does not fail with its retrieval: its answer says that the
                # documents could not be searched.
                logger.exception("retrieval failed")
            metrics.RETRIEVAL.labels(self._retriever.name, outcome).observe(
                time.monotonic() - started, exemplar()
            )
            _record_outcome(span, query, results, outcome)
            annotate(num_results=len(results), retrieval=outcome)
            return RetrievalOutcome(results, failed=outcome in ("timeout", "failed"))

    async def build_prompt(
        self, query: str, results: Sequence[SearchResult], max_tokens: int, model: ModelInfo
    ) -> SummaryPrompt:
        """Encodes a prompt that leaves `max_tokens` of the model's context for the summary.

        Drops passages and sentences from the end of the prompt until it fits. Raises MeshError
        (CONTEXT_TOO_LONG) if the prompt does not fit even without passages.
        """
        limit = model.context_length - max_tokens
        client = self._tokenizers.of(model.name)
        tokenizer = (await client.current()).tokenizer
        passages = [Passage(result.title, result.text) for result in select_for_prompt(results)]
        # The real overhead is known only after encoding; the estimate is then corrected.
        overhead = PROMPT_OVERHEAD_TOKENS
        while True:
            fitting = await fitted_passages(passages, limit - overhead, tokenizer)
            messages = search_messages(query, fitting)
            prompt = ChatPrompt(
                messages=[ChatMessage(role=m.role, content=m.content) for m in messages]
            )
            encoded = await client.encode_chat(prompt)
            excess = len(encoded.token_ids) - limit
            if excess <= 0:
                return SummaryPrompt(encoded, len(fitting))
            if not fitting:
                raise _too_long(model, len(encoded.token_ids), max_tokens)
            overhead += excess


def _too_long(model: ModelInfo, prompt_tokens: int, max_tokens: int) -> MeshError:
    param = "max_tokens" if prompt_tokens < model.context_length else "query"
    given = (
        f"you requested {prompt_tokens + max_tokens} tokens ({prompt_tokens} for the question, "
        f"{max_tokens} in the summary). Please reduce {param}."
    )
    message = context_too_long_message(model.context_length, given)
    return MeshError(ErrorKind.CONTEXT_TOO_LONG, message, param=param)


def _record_outcome(span: Span, query: str, results: Sequence[SearchResult], outcome: str) -> None:
    """Sets the outcome on the retrieval span; a failed retrieval does not fail the request."""
    span.set_attributes({semconv.RETRIEVAL_OUTCOME: outcome, semconv.NUM_RESULTS: len(results)})
    if outcome == "timeout":
        tracing.set_outcome(span, Outcome.DEADLINE, outcome)
    elif outcome == "failed":
        tracing.set_outcome(span, Outcome.FAILED, outcome)
    if span.is_recording() and telemetry.captures_content():
        documents = [{"id": result.url, "score": result.score} for result in results]
        span.set_attribute(semconv.GEN_AI_RETRIEVAL_QUERY_TEXT, query)
        span.set_attribute(semconv.GEN_AI_RETRIEVAL_DOCUMENTS, json.dumps(documents))


async def fitted_passages(
    passages: Sequence[Passage], max_tokens: int, tokenizer: Tokenizer
) -> list[Passage]:
    """`fit_passages` in a thread, with a span."""
    with tracing.stage(semconv.FIT_PASSAGES) as span:
        fitting = await asyncio.to_thread(fit_passages, passages, max_tokens, tokenizer)
        if span.is_recording():
            span.set_attribute(semconv.NUM_RESULTS, len(passages))
            span.set_attribute(semconv.NUM_FITTING, len(fitting))
    return fitting


def fit_passages(
    passages: Sequence[Passage], max_tokens: int, tokenizer: Tokenizer
) -> list[Passage]:
    """Truncates `passages` by whole sentences to about `max_tokens` tokens in total.

    Later passages are cut first, and none is skipped, so each passage keeps its number. Blocks
    the calling thread, for the most part with Python's global interpreter lock (GIL) released.
    """
    fitting: list[Passage] = []
    for number, passage in enumerate(passages, 1):
        sentences = split_sentences(passage.text)
        title = format_source(number, Passage(passage.title, "")) + "\n\n"
        lines = [title, *(f"{sentence} [{number}]\n" for sentence in sentences)]
        # Of the library's encode methods only the batch form releases the GIL.
        encodings = tokenizer.encode_batch_fast(lines, add_special_tokens=False)
        # One token more per line: a token may split where lines are joined.
        ends = list(accumulate(len(encoding.ids) + 1 for encoding in encodings))
        kept = sum(end <= max_tokens for end in ends) - 1
        if kept < 1:
            break
        max_tokens -= ends[kept]
        fitting.append(Passage(passage.title, " ".join(sentences[:kept])))
        if kept < len(sentences):
            break
    return fitting
