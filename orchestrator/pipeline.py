"""The steps of a request: admit, choose a model, retrieve, encode, generate, ground, embed.

`service.py` calls them in this order, in one generator per RPC. Leaving the block of a step, in
any way, releases everything that the step holds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import NamedTuple

from opentelemetry.trace import Span

from mesh.context import annotate, current_request
from mesh.errors import ErrorKind, MeshError, invalid
from mesh.observability import semconv, tracing
from mesh.observability.recording.current import CurrentSpan
from mesh.observability.semconv import Operation
from mesh.protocol.api_request import ApiRequest
from mesh.protocol.chat import ChatMessage, ChatPrompt, ToolChoice
from mesh.protocol.constraints import ConstraintForm
from mesh.protocol.deltas import Delta
from mesh.protocol.finish import GenerationFinish
from mesh.protocol.model_kind import ModelKind
from mesh.protocol.prompt import Prompt
from mesh.protocol.sampling_params import SamplingParams
from mesh.protocol.search import DEFAULT_SUMMARY_TOKENS, Source
from mesh.protocol.summary import Grounded, SummaryFinish
from orchestrator.admission.admission import Admission, Permit
from orchestrator.admission.request_table import (
    ActiveRequest,
    RequestAborted,
    RequestState,
    RequestTable,
)
from orchestrator.admission.timeouts import with_timeouts
from orchestrator.admission.validation import (
    GENERATES,
    check_min_tokens,
    check_vocabulary,
    choose_model,
    of_kinds,
    only_name,
    room_for_completion,
    with_context_length,
)
from orchestrator.clients.tokenizer import EncodedText, TextOptions
from orchestrator.clients.tokenizers import Tokenizers
from orchestrator.embedding import (
    Batch,
    FieldOf,
    Input,
    embed_batch,
    encode_inputs,
    input_field,
    split_batches,
)
from orchestrator.generation import ModelInfo
from orchestrator.observability import metrics, spans
from orchestrator.observability.request_account import RequestAccount
from orchestrator.routing import failover
from orchestrator.routing.direct_path import DirectPath
from orchestrator.routing.replicas import Replicas
from orchestrator.running_generation import Generation
from orchestrator.scoring import Scorer
from orchestrator.search.answering.line_marks import marks_lines
from orchestrator.search.conversation.examples import Examples
from orchestrator.search.conversation.related import related_questions
from orchestrator.search.conversation.rewriting import (
    MAX_TOKENS,
    Rewrite,
    add_subject,
    parse_rewrite,
    rewrite_constraint,
    rewrite_messages,
)
from orchestrator.search.grounded_answer import ground_prompt
from orchestrator.search.search import RetrievalOutcome, Search, SummaryPrompt
from orchestrator.search.summary import SearchRequest, SummaryAssembler
from orchestrator.text.assembler import TextAssembler
from orchestrator.text.format_choice import FormatChoices
from orchestrator.text.preparation import PreparedPrompt, bind, prepare
from orchestrator.text.tokens import Tokens, encode

logger = logging.getLogger("orchestrator.pipeline")

ANY_TOOL = ToolChoice()
JSON_FORMS = frozenset({ConstraintForm.JSON_OBJECT, ConstraintForm.JSON_SCHEMA})
DETECTED = FormatChoices()

RELATED_TIMEOUT_SECONDS = 2.0
"""Time in which related questions are made; the answer is complete before."""


class GenerationRequest(NamedTuple):
    """A prompt and how to continue it."""

    prompt: Prompt
    model: str
    sampling: SamplingParams
    stop: Sequence[str] = ()
    echo: bool = False
    tool_choice: ToolChoice = ANY_TOOL
    fit_max_tokens: bool = False
    """Lower `sampling.max_tokens` to the room that the prompt leaves in the context."""
    sources: Sequence[Source] | None = None
    """Passages that the answer is to be made of, and may cite."""
    api_request: ApiRequest | None = None


def _has_model(models: Mapping[str, ModelInfo], name: str, kinds: Sequence[ModelKind]) -> bool:
    return name in models if name else bool(of_kinds(models, kinds))


class Pipeline:
    """Works on requests, many at a time, on one event loop."""

    def __init__(
        self,
        *,
        admission: Admission,
        requests: RequestTable,
        tokenizers: Tokenizers,
        replicas: Replicas,
        search: Search,
        request_timeout_seconds: float,
        max_summary_characters: int,
        search_model: str = "",
        formats: FormatChoices = DETECTED,
        rewrite_timeout_seconds: float = 2.0,
    ) -> None:
        """`request_timeout_seconds` limits requests that arrive without a deadline.

        `search_model` is the model of searches that name none.
        """
        self._admission = admission
        self._requests = requests
        self._tokenizers = tokenizers
        self._replicas = replicas
        self._search = search
        self._examples = Examples(search)
        self._request_timeout_seconds = request_timeout_seconds
        self._max_summary_characters = max_summary_characters
        self._search_model = search_model
        self._formats = formats
        self._rewrite_timeout_seconds = rewrite_timeout_seconds
        metrics.NUM_REQUESTS_RUNNING.set_function(lambda: len(requests))

    @contextmanager
    def admitted(self, method: str) -> Iterator[ActiveRequest]:
        """Holds a permit and an entry in the request table; reports the request at its end.

        Raises MeshError (OVERLOADED).
        """
        request = current_request()
        account = RequestAccount(method)
        if request is not None and request.deadline is None:
            request.deadline = account.arrived + self._request_timeout_seconds
        request_id, key = (request.request_id, request.key_name) if request else ("", "")
        try:
            with (
                self._admit(key) as permit,
                self._requests.track(ActiveRequest(request_id, account, permit)) as active,
            ):
                account.accepted()
                yield active
                account.succeeded()
        except MeshError as error:
            account.failed(error.kind)
            raise
        except Exception:
            account.failed(ErrorKind.INTERNAL)
            raise
        finally:
            account.report()

    async def choose_model(
        self, name: str, active: ActiveRequest, kinds: Sequence[ModelKind] = GENERATES
    ) -> ModelInfo:
        """The served model of this name; "" is the only one of the first of `kinds` that is served.

        Waits a moment for a model whose last replica was just lost. Raises MeshError.
        """
        models = self._replicas.models
        known = {**self._replicas.sleeping, **models}
        name = name or only_name(known, kinds)
        if name in known:
            active.account.asks_for(name)
        if not _has_model(models, name, kinds):
            await self._wait_served(name, active, kinds)
            models = self._replicas.models
            is_known = name in known and not _has_model(models, name, kinds)
            if is_known or not (models or self._replicas.all_are_named):
                problems = self._replicas.problems
                reason = f": {problems[0]}" if problems else ""
                message = f"no engine is ready{reason}"
                raise MeshError(ErrorKind.UNAVAILABLE, message, retry_after=1.0)
        if not name and not of_kinds(known, kinds):
            message = "no engine that generates text is ready"
            raise MeshError(ErrorKind.UNAVAILABLE, message, retry_after=1.0)
        model = choose_model(name, list(models.values()), known, kinds)
        if not (model.eos_token_ids or model.model_sha256):  # vLLM's HTTP server reports neither
            eos = self._tokenizers.of(model.tokenizer).eos_token_ids
            model = model._replace(eos_token_ids=eos)
        active.account.chosen(model)
        return model

    def _serves(self, name: str, kinds: Sequence[ModelKind]) -> bool:
        return _has_model(self._replicas.models, name, kinds)

    async def choose_search_model(self, name: str, active: ActiveRequest) -> ModelInfo:
        """The model of a search; "" is the configured one, or else the only one.

        Raises MeshError (UNAVAILABLE if the configured one has no engine).
        """
        configured = self._search_model
        if name or not configured:
            return await self.choose_model(name, active)
        try:
            return await self.choose_model(configured, active)
        except MeshError as error:
            if error.kind not in (ErrorKind.UNAVAILABLE, ErrorKind.MODEL_NOT_FOUND):
                raise
            raise MeshError(
                ErrorKind.UNAVAILABLE,
                f"no engine is ready for {configured}, the model of searches",
                retry_after=error.retry_after or 1.0,
                is_final=error.is_final,
            ) from error

    async def _wait_served(
        self, name: str, active: ActiveRequest, kinds: Sequence[ModelKind]
    ) -> None:
        """Waits while an engine of the model may soon be ready. Raises MeshError (UNAVAILABLE)."""
        async with active.cancellable():
            if await self._replicas.wait_ready(name, lambda: self._serves(name, kinds)):
                return
            if not self._replicas.problems:
                await self._replicas.wait_awake(name, lambda: self._serves(name, kinds))

    async def prompt(
        self, request: GenerationRequest, model: ModelInfo, active: ActiveRequest
    ) -> PreparedPrompt:
        """Encodes the prompt of a generation. Raises MeshError."""
        active.state = RequestState.ENCODING
        with tracing.stage(semconv.ENCODE) as span:
            try:
                async with active.cancellable():
                    prompt = await self._prepare(request, model)
            except MeshError as error:
                raise with_context_length(error, model) from error
            active.tool_prompt = prompt.encoded.tool_prompt
            span.set_attribute(semconv.NUM_TOKENS, len(prompt.encoded.token_ids))
        return prompt

    async def _prepare(self, request: GenerationRequest, model: ModelInfo) -> PreparedPrompt:
        tokenizer = self._tokenizers.of(model.tokenizer)
        formats = self._formats.of(model.tokenizer)

        async def prepare_one(prompt: Prompt, max_tokens: int = 0) -> PreparedPrompt:
            constraint, choice = request.sampling.constraint, request.tool_choice
            return await prepare(
                tokenizer, prompt, constraint, request.echo, choice, max_tokens, formats
            )

        if request.sources is None:
            return await prepare_one(request.prompt, model.context_length)
        if not isinstance(request.prompt, ChatPrompt):
            raise invalid("grounding", "grounding must come with a conversation, given a text")
        wanted = request.sampling.max_tokens
        reserved = min(DEFAULT_SUMMARY_TOKENS, model.context_length // 4)
        grounded = await ground_prompt(
            request.prompt,
            request.sources,
            model.context_length - (reserved if wanted is None else wanted),
            (await tokenizer.current()).tokenizer,
            prepare_one,
        )
        return grounded.prepared._replace(num_passages=grounded.num_passages)

    async def count_tokens(self, prompt: Prompt, model: ModelInfo, active: ActiveRequest) -> int:
        """The number of tokens of a conversation or text. Raises MeshError."""
        tokenizer = self._tokenizers.of(model.tokenizer)
        active.state = RequestState.ENCODING
        with tracing.stage(semconv.ENCODE) as span:
            async with active.cancellable():
                prepared = await prepare(tokenizer, prompt, None, False, ANY_TOOL)
            num_tokens = len(prepared.encoded.token_ids)
            span.set_attribute(semconv.NUM_TOKENS, num_tokens)
        return num_tokens

    async def tokenize(
        self, prompt: ChatPrompt | str, model: ModelInfo, special: bool, active: ActiveRequest
    ) -> Tokens:
        """Encodes a conversation or text of any length. Raises MeshError.

        `special`: add the tokenizer's special tokens, to those of a chat template as well.
        """
        tokenizer = self._tokenizers.of(model.tokenizer)
        active.state = RequestState.ENCODING
        with tracing.stage(semconv.ENCODE) as span:
            async with active.cancellable():
                tokens = await encode(tokenizer, prompt, add_special_tokens=special)
            span.set_attribute(semconv.NUM_TOKENS, len(tokens.token_ids))
        return tokens

    async def detokenize(
        self, token_ids: Sequence[int], model: ModelInfo, active: ActiveRequest
    ) -> str:
        """The text of token ids, with special tokens. Raises MeshError."""
        active.state = RequestState.ENCODING
        async with active.cancellable():
            tokenizer = self._tokenizers.of(model.tokenizer)
            return await tokenizer.decode(token_ids, "token_ids", skip_special_tokens=False)

    async def rewrite(
        self, request: SearchRequest, model: ModelInfo, active: ActiveRequest
    ) -> Rewrite:
        """The question without its conversation; by the model if it can, else by its words.

        Takes at most the configured time.
        """
        with tracing.stage(semconv.REWRITE) as span:
            try:
                async with asyncio.timeout(self._rewrite_timeout_seconds), active.cancellable():
                    made = await self._rewrite(request, model, active)
            except RequestAborted:
                made = None  # `search_prompt` raises it again
            except (MeshError, TimeoutError) as error:
                logger.warning("question cannot be rewritten", extra={"error": str(error)})
                tracing.set_outcome(span, semconv.Outcome.FAILED, type(error).__name__)
                made = None
        return made or add_subject(request.query, request.history)

    async def _rewrite(
        self, request: SearchRequest, model: ModelInfo, active: ActiveRequest
    ) -> Rewrite | None:
        """The model's rewriting; None if it fails, or if the model does nothing but quote."""
        client = self._tokenizers.of(model.tokenizer)
        local = await client.current()
        if marks_lines(local.decoder.token_id):
            return None
        messages = [
            ChatMessage(role=each.role, content=each.content)
            for each in rewrite_messages(request.query, request.history)
        ]
        encoded = await client.encode_chat(
            ChatPrompt(messages=messages, merge_system_messages=True), model.context_length
        )
        constraint = rewrite_constraint(request.max_searches)
        prompt = bind(encoded, local, constraint, self._formats.of(model.name))
        text = await self._complete(prompt, model, MAX_TOKENS, active)
        return parse_rewrite(text, request.max_searches)

    async def _complete(
        self, prompt: PreparedPrompt, model: ModelInfo, max_tokens: int, active: ActiveRequest
    ) -> str:
        """A short text that the model writes for the orchestrator. Raises MeshError."""
        check_vocabulary(prompt.encoded.vocabulary_sha256, model)
        token_ids = prompt.encoded.token_ids
        limit = room_for_completion(len(token_ids), max_tokens, model, "history")
        sampling = SamplingParams(temperature=0.0, max_tokens=limit, constraint=prompt.constraint)
        assembler = TextAssembler(prompt, model, sampling, ())
        texts: list[str] = []
        requested = spans.Requested(model, sampling, (), active.account.api_request, True)
        with active.account.side_generation(prompt.encoded, requested) as side:
            tokens = failover.generate(self._replicas, model, token_ids, sampling, active)
            async with aclosing(tokens):
                async for chunk in tokens:
                    texts += [delta.text for delta in assembler.push(chunk)]
                    side.add(chunk)
        return "".join(texts)

    async def related(
        self, request: SearchRequest, question: Rewrite, retrieved: RetrievalOutcome
    ) -> list[str]:
        """Questions near this one that the documents can answer; none after a failure."""
        asked = [question.question, request.query, *(turn.query for turn in request.history)]
        with tracing.stage(semconv.RELATED) as span:
            try:
                async with asyncio.timeout(RELATED_TIMEOUT_SECONDS):
                    # In a thread: the words of 40 passages are split.
                    return await asyncio.to_thread(
                        related_questions, asked, retrieved.candidates, request.num_related
                    )
            except Exception as error:
                # The answer is complete, and does not fail with them.
                logger.warning("no related questions", extra={"error": repr(error)})
                tracing.set_outcome(span, semconv.Outcome.FAILED, type(error).__name__)
                return []

    async def examples(self, number: int, active: ActiveRequest) -> Sequence[str]:
        """Questions that the documents answer. Raises RequestAborted."""
        active.state = RequestState.RETRIEVING
        async with active.cancellable():
            return await self._examples.questions(number)

    async def retrieve(
        self, request: SearchRequest, searches: Sequence[str], active: ActiveRequest
    ) -> RetrievalOutcome:
        """Finds passages for queries; none if an operator ends the request meanwhile."""
        active.state = RequestState.RETRIEVING
        try:
            async with active.cancellable():
                return await self._search.retrieve(
                    searches, request.num_results, request.safe_search
                )
        except RequestAborted:
            return RetrievalOutcome(())  # `search_prompt` raises it again

    async def search_prompt(
        self,
        request: SearchRequest,
        question: Rewrite,
        retrieved: RetrievalOutcome,
        model: ModelInfo,
        active: ActiveRequest,
    ) -> SummaryPrompt:
        """Encodes the prompt of a search, with as many passages as fit. Raises MeshError."""
        active.state = RequestState.ENCODING
        with tracing.stage(semconv.ENCODE) as span:
            async with active.cancellable():
                prompt = await self._search.build_prompt(
                    question,
                    retrieved.results,
                    request.max_tokens,
                    model,
                    request.grounded,
                )
            span.set_attribute(semconv.NUM_TOKENS, len(prompt.prepared.encoded.token_ids))
        return prompt

    def generate(
        self,
        prompt: PreparedPrompt,
        model: ModelInfo,
        sampling: SamplingParams,
        stop: Sequence[str],
        active: ActiveRequest,
        *,
        fit_max_tokens: bool = False,
        again: bool = False,
    ) -> Generation:
        """A generation, to be entered at once.

        `fit_max_tokens`: lower the limit of tokens to the room in the context. `again`: after one
        with the same prompt that was refused. Raises MeshError if the prompt is too long, or not of
        the model's vocabulary.
        """
        check_vocabulary(prompt.encoded.vocabulary_sha256, model)
        num_tokens = len(prompt.encoded.token_ids)
        field = "messages" if isinstance(prompt.encoded.source, ChatPrompt) else "prompt"
        limit = sampling.max_tokens
        if fit_max_tokens and limit is not None:
            limit = min(limit, max(1, model.context_length - num_tokens))
        max_tokens = room_for_completion(num_tokens, limit, model, field)
        check_min_tokens(sampling.min_tokens, max_tokens)
        account = active.account
        if not again:
            active.permit.reserve(num_tokens + max_tokens)
            account.encoded(num_tokens, spans.operation_of(prompt.encoded))
        constraint = sampling.constraint
        is_json = constraint is not None and constraint.form in JSON_FORMS
        # Explicit, because a replica that takes over during the stream needs the same limit.
        sampling = dataclasses.replace(
            sampling, max_tokens=max_tokens, constraint=prompt.constraint
        )
        active.state = RequestState.WAITING
        assembler = TextAssembler(prompt, model, sampling, stop)
        account.start_generation(
            prompt.encoded, spans.Requested(model, sampling, stop, account.api_request, is_json)
        )
        direct = DirectPath()
        tokens = failover.generate(
            self._replicas, model, prompt.encoded.token_ids, sampling, active, direct
        )
        source = with_timeouts(tokens, current_request())
        path = direct if source is tokens else None  # timeouts are those of the reader
        return Generation(source, assembler, model, active, prompt.constraint_field, path)

    def new_summary(self, grounded: Grounded) -> SummaryAssembler:
        """Assembles the summary of one search; its text is limited in length."""
        return SummaryAssembler(self._max_summary_characters, grounded)

    async def ground(
        self, summary: SummaryAssembler, finish: GenerationFinish
    ) -> list[Delta | SummaryFinish]:
        """The last events of a summary: text that was held back, and the finish with citations."""
        with tracing.stage(semconv.GROUNDING):
            # In a thread: a long summary takes tens of milliseconds.
            events = await asyncio.to_thread(lambda: list(summary.finish(finish)))
        for event in events:
            if isinstance(event, SummaryFinish):
                annotate(num_citations=len(event.citations))
        return events

    async def encode_inputs(
        self,
        inputs: Sequence[Input],
        model: ModelInfo,
        options: TextOptions,
        active: ActiveRequest,
    ) -> Iterator[Batch]:
        """Encodes and reserves the tokens of all inputs to embed, in batches. Raises MeshError."""
        tokenizer = self._tokenizers.of(model.tokenizer)
        return await self._reserve(encode_inputs(inputs, model, tokenizer, options), active)

    async def encode_pairs(
        self, scorer: Scorer, options: TextOptions, is_search: bool, active: ActiveRequest
    ) -> Iterator[Batch]:
        """The same for pairs of texts that are scored."""
        tokenizer = self._tokenizers.of(scorer.model.name)
        return await self._reserve(scorer.encode(tokenizer, options, is_search), active)

    async def _reserve(
        self, encoding: Coroutine[None, None, Sequence[EncodedText]], active: ActiveRequest
    ) -> Iterator[Batch]:
        active.state = RequestState.ENCODING
        with tracing.stage(semconv.ENCODE) as span:
            async with active.cancellable():
                encoded = await encoding
            num_tokens = sum(len(each.token_ids) for each in encoded)
            span.set_attribute(semconv.NUM_TOKENS, num_tokens)
        active.permit.reserve(num_tokens)
        active.account.encoded(num_tokens, Operation.EMBEDDINGS)
        active.state = RequestState.WAITING
        return split_batches(encoded)

    async def embed(
        self,
        batch: Batch,
        model: ModelInfo,
        active: ActiveRequest,
        span: Span,
        field_of: FieldOf = input_field,
    ) -> Sequence[Sequence[float]]:
        """The vectors of one batch; of a cross-encoder the scores. Raises MeshError.

        The spans of its calls are in `span`.
        """
        with CurrentSpan(span):
            async with active.cancellable():
                vectors = await embed_batch(batch, model, self._replicas, field_of)
        if vectors and span.is_recording() and model.kind is not ModelKind.SCORE:
            span.set_attribute(semconv.GEN_AI_EMBEDDINGS_DIMENSION_COUNT, len(vectors[0]))
        active.permit.progress(batch.num_tokens)
        return vectors

    def _admit(self, key: str) -> Permit:
        limit = {semconv.ADMISSION_LIMIT: self._admission.limit}
        with tracing.stage(semconv.ADMISSION, limit) as span:
            span.set_attribute(semconv.NUM_ADMITTED, self._admission.num_admitted)
            return self._admission.permit(key)
