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
from mesh.protocol.constraints import OutputConstraint
from mesh.protocol.summary import Grounded
from orchestrator.clients.tokenizer import Encoded
from orchestrator.clients.tokenizers import Tokenizers
from orchestrator.generation import ModelInfo
from orchestrator.observability import metrics
from orchestrator.search.answering.constraint import answer_constraint
from orchestrator.search.answering.decision import decide
from orchestrator.search.answering.line_marks import line_marks
from orchestrator.search.answering.relevance import Verdict
from orchestrator.search.conversation.merging import merge
from orchestrator.search.conversation.rewriting import Rewrite
from orchestrator.search.grounding.sentences import split_sentences
from orchestrator.search.prompt import Passage, format_source, search_messages
from orchestrator.search.retrieval import Retriever, SearchResult
from orchestrator.search.selection import NUM_CANDIDATES, select_results
from orchestrator.text.format_choice import FormatChoices
from orchestrator.text.preparation import PreparedPrompt, bind

DETECTED = FormatChoices()

logger = logging.getLogger("orchestrator.search.search")

PROMPT_OVERHEAD_TOKENS = 128
"""First estimate of the tokens that instructions and chat template add to the passages."""


class RetrievalOutcome(NamedTuple):
    """The results of one retrieval; those that the prompt quotes come first."""

    results: Sequence[SearchResult]
    failed: bool = False
    """The retrieval failed or timed out, so an empty list does not mean that nothing matches."""
    candidates: Sequence[SearchResult] = ()
    """All passages that were found, best first."""


class SummaryPrompt(NamedTuple):
    """A prompt with the constraint of its answer, and how many results it quotes: the first ones.

    None of them if they do not answer the query.
    """

    prepared: PreparedPrompt
    num_passages: int


class Search:
    """Retrieves passages and builds the prompt for their summary."""

    def __init__(
        self,
        retriever: Retriever,
        tokenizers: Tokenizers,
        timeout_seconds: float,
        formats: FormatChoices = DETECTED,
    ) -> None:
        self._formats = formats
        self._retriever = retriever
        self._tokenizers = tokenizers
        self._timeout_seconds = timeout_seconds

    async def retrieve(
        self, queries: Sequence[str], num_results: int, safe_search: bool
    ) -> RetrievalOutcome:
        """Returns at most `num_results` passages; none if the retrieval fails or times out.

        The queries are searched at the same time. Those that fail or are late are left out, unless
        all are.
        """
        started = time.monotonic()
        with tracing.stage(
            Operation.RETRIEVAL, {semconv.GEN_AI_OPERATION_NAME: Operation.RETRIEVAL}
        ) as span:
            outcome = "failed"
            results: list[SearchResult] = []
            found: list[SearchResult] = []
            try:
                found = await self._search(queries, safe_search, span)
                # In a thread: the words of 40 passages are compared in pairs.
                results = await asyncio.to_thread(select_results, found, num_results)
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
            _record_outcome(span, queries, results, outcome)
            annotate(num_results=len(results), retrieval=outcome)
            failed = outcome in ("timeout", "failed")
            return RetrievalOutcome(results, failed=failed, candidates=found)

    async def _search(
        self, queries: Sequence[str], safe_search: bool, span: Span
    ) -> list[SearchResult]:
        """The merged results of the queries that are answered in time.

        Raises TimeoutError if none is, or the error of the first if all fail.
        """
        answers: dict[int, list[SearchResult]] = {}
        errors: dict[int, Exception] = {}

        async def search(number: int, query: str) -> None:
            try:
                answers[number] = await self._retriever.search(query, NUM_CANDIDATES, safe_search)
            except Exception as error:
                errors[number] = error

        try:
            async with asyncio.timeout(self._timeout_seconds), asyncio.TaskGroup() as tasks:
                for number, query in enumerate(queries):
                    tasks.create_task(search(number, query))
        except TimeoutError as error:
            errors.update((each, error) for each in range(len(queries)) if each not in answers)
        if not answers:
            raise errors[min(errors)]
        if errors:
            problem = _problem(errors[min(errors)], self._timeout_seconds)
            span.set_attribute(semconv.RETRIEVAL_PROBLEM, problem)
            logger.warning(
                "queries of a retrieval failed",
                extra={"number": len(errors), "of": len(queries), "error": problem},
            )
        return [each.shortened() for each in merge([answers[each] for each in sorted(answers)])]

    async def build_prompt(
        self,
        question: Rewrite,
        results: Sequence[SearchResult],
        max_tokens: int,
        model: ModelInfo,
        grounded: Grounded,
    ) -> SummaryPrompt:
        """Encodes a prompt that leaves `max_tokens` of the model's context for the summary.

        Without passages if they are about something else than the question. Drops passages and
        sentences from the end of the prompt until it fits. Raises MeshError (CONTEXT_TOO_LONG) if
        the prompt does not fit even without passages.
        """
        limit = model.context_length - max_tokens
        client = self._tokenizers.of(model.tokenizer)
        local = await client.current()
        # In a thread: all words of the passages are compared.
        question, passages, verdict = await asyncio.to_thread(decide, question, results)
        # The real overhead is known only after encoding; the estimate is then corrected.
        overhead = PROMPT_OVERHEAD_TOKENS
        while True:
            fitting = await fitted_passages(passages, limit - overhead, local.tokenizer)
            messages = search_messages(question.question, fitting)
            prompt = ChatPrompt(
                messages=[ChatMessage(role=m.role, content=m.content) for m in messages],
                merge_system_messages=True,
            )
            encoded = await client.encode_chat(prompt)
            excess = len(encoded.token_ids) - limit
            if excess <= 0:
                constraint = await asyncio.to_thread(
                    _constraint, grounded, question, fitting, verdict, encoded
                )
                prepared = bind(encoded, local, constraint, self._formats.of(model.name))
                return SummaryPrompt(prepared, len(fitting))
            if not fitting:
                raise _too_long(model, len(encoded.token_ids), max_tokens)
            overhead += excess


def _problem(error: Exception, timeout_seconds: float) -> str:
    """Why a query has no results."""
    if isinstance(error, TimeoutError):
        return f"took longer than {timeout_seconds} s"
    return str(error) or type(error).__name__


def _constraint(
    grounded: Grounded,
    question: Rewrite,
    passages: Sequence[Passage],
    verdict: Verdict,
    encoded: Encoded,
) -> OutputConstraint:
    """The constraint of the answer to an encoded prompt."""
    num_lines = sum(len(split_sentences(each.text)) for each in passages)
    marks = line_marks(encoded.token_ids, num_lines, encoded.decoder.token_id)
    query = " ".join(dict.fromkeys([question.question, *question.searches]))
    return answer_constraint(grounded, query, passages, verdict, marks)


def _too_long(model: ModelInfo, prompt_tokens: int, max_tokens: int) -> MeshError:
    param = "max_tokens" if prompt_tokens < model.context_length else "query"
    given = (
        f"you requested {prompt_tokens + max_tokens} tokens ({prompt_tokens} for the question, "
        f"{max_tokens} in the summary). Please reduce {param}."
    )
    message = context_too_long_message(model.context_length, given)
    return MeshError(ErrorKind.CONTEXT_TOO_LONG, message, param=param)


def _record_outcome(
    span: Span, queries: Sequence[str], results: Sequence[SearchResult], outcome: str
) -> None:
    """Sets the outcome on the retrieval span; a failed retrieval does not fail the request."""
    span.set_attributes({semconv.RETRIEVAL_OUTCOME: outcome, semconv.NUM_RESULTS: len(results)})
    if outcome == "timeout":
        tracing.set_outcome(span, Outcome.DEADLINE, outcome)
    elif outcome == "failed":
        tracing.set_outcome(span, Outcome.FAILED, outcome)
    if span.is_recording() and telemetry.captures_content():
        documents = [{"id": result.url, "score": result.score} for result in results]
        span.set_attribute(semconv.GEN_AI_RETRIEVAL_QUERY_TEXT, "\n".join(queries))
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
