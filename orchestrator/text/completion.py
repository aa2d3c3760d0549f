"""Tokens become text: detokenized, cut at stop strings, counted."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from mesh.context import current_request
from mesh.errors import invalid
from mesh.protocol.deltas import Delta, DeltaLogprob
from mesh.protocol.finish import FinishReason, GenerationFinish, GenerationStarted
from mesh.protocol.logprobs import TokenLogprob
from mesh.protocol.sampling_params import SamplingParams
from mesh.protocol.tokens import TokenChunk
from mesh.protocol.usage import Usage
from orchestrator.admission.request_table import ActiveRequest, RequestState
from orchestrator.admission.timeouts import patiently
from orchestrator.admission.validation import room_for_completion
from orchestrator.generation import ModelInfo, Progress
from orchestrator.observability import metrics, spans
from orchestrator.routing import failover
from orchestrator.routing.replicas import Replicas
from orchestrator.text.answer import Answer, Piece
from orchestrator.text.detokenizer import Decoder
from orchestrator.text.preparation import Prepared
from orchestrator.text.stop_strings import StopStrings

NOTHING = Piece()


class Completion:
    """The text of one generation. Iterate once; `usage` is right at any time."""

    def __init__(
        self,
        *,
        prepared: Prepared,
        model: ModelInfo,
        sampling: SamplingParams,
        stop: Sequence[str],
        active: ActiveRequest,
    ) -> None:
        """`sampling.max_tokens` must be set and fit the model's context."""
        self._prompt = prepared.encoded
        self._echo = prepared.echo
        self._model = model
        self._sampling = sampling
        self._active = active
        self._answer = prepared.answer or Answer()
        self._detokenizer = self._prompt.decoder.stream(prepared.kept)
        self._ends = sampling.end_token_ids(model.eos_token_ids)
        self._stop = StopStrings(stop)
        # Tokens, and their log probabilities, of text that is still held back.
        self._num_held = 0
        self._logprobs_held: list[DeltaLogprob] = []
        self.usage = Usage(prompt_tokens=len(self._prompt.token_ids))

    async def stream(self, replicas: Replicas) -> AsyncGenerator[Progress, None]:
        """Stream progress: the start is in the first, the finish in the last. Raises MeshError."""
        active = self._active
        active.state = RequestState.WAITING
        chunks = patiently(
            failover.generate(
                replicas, self._model, self._prompt.token_ids, self._sampling, active
            ),
            current_request(),
        )
        started: GenerationStarted | None = GenerationStarted(
            self._model.name, self.usage.prompt_tokens
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                if self._echo is not None and (chunk.token_ids or self._echo_ready(chunk)):
                    yield Progress(started, self._tell_echo(chunk))
                    started = None
                piece = NOTHING
                if chunk.token_ids:
                    active.state = RequestState.STREAMING
                    piece = self._read(chunk)
                finish = chunk.finish
                if finish is not None:
                    self.usage = finish.usage
                    if not self._stop.matched:
                        piece += self._flush()
                if self._stop.matched:
                    finish = GenerationFinish(FinishReason.STOP, self.usage)
                progress = Progress(started, self._take(piece), finish)
                if any(progress):
                    # Not so for tokens that are held back, and for the acceptance of a replica
                    # that took over.
                    yield progress
                    started = None
                if self._stop.matched:
                    # Leaving the block cancels what the engine still does for this request.
                    return

    def _echo_ready(self, chunk: TokenChunk) -> bool:
        """Whether the prompt can be told before any token is there."""
        return self._sampling.num_prompt_logprobs is None or bool(chunk.prompt_logprobs)

    def _tell_echo(self, chunk: TokenChunk) -> Delta:
        """The prompt as the first delta, which covers no token of the completion."""
        text, self._echo = self._echo or "", None
        if self._sampling.num_prompt_logprobs is None:
            return Delta(text, 0)
        token_ids, decoder = self._prompt.token_ids, self._prompt.decoder
        if len(chunk.prompt_logprobs) != len(token_ids) - 1:
            raise invalid(
                "logprobs",
                "logprobs must be absent with echo: this engine gives none of a prompt",
            )
        first = _one(decoder, token_ids[0], None)
        return Delta(text, 0, [first, *(_logprob(decoder, each) for each in chunk.prompt_logprobs)])

    def _read(self, chunk: TokenChunk) -> Piece:
        """What is certain of the text now; all of it if it ends here at a stop string."""
        num_tokens = len(chunk.token_ids)
        self.usage = self.usage._replace(
            completion_tokens=self.usage.completion_tokens + num_tokens
        )
        self._active.completion_tokens += num_tokens
        metrics.GENERATION_TOKENS.inc(num_tokens)
        self._num_held += num_tokens
        for logprob in chunk.logprobs:
            self._logprobs_held.append(_logprob(self._prompt.decoder, logprob))
        token_ids = chunk.token_ids
        if token_ids[-1] in self._ends:
            token_ids = token_ids[:-1]
        text = self._stop.push(self._detokenizer.push(token_ids))
        piece = self._answer.push(text)
        if self._stop.matched:
            piece += self._answer.flush()
        return piece

    def _flush(self) -> Piece:
        """What was held back."""
        text = self._stop.push(self._detokenizer.flush())
        return self._answer.push(text + self._stop.flush()) + self._answer.flush()

    def _take(self, piece: Piece) -> Delta | None:
        """A delta of `piece` and all tokens so far; None if there is nothing to show."""
        if piece.empty:
            return None
        delta = Delta(piece.text, self._num_held, self._logprobs_held, piece.reasoning, piece.calls)
        self._num_held, self._logprobs_held = 0, []
        return delta


def begin(
    prepared: Prepared,
    model: ModelInfo,
    sampling: SamplingParams,
    stop: Sequence[str],
    active: ActiveRequest,
) -> Completion:
    """The completion of a prompt that has room in the model's context. Raises MeshError."""
    num_tokens = len(prepared.encoded.token_ids)
    max_tokens = room_for_completion(num_tokens, sampling.max_tokens, model)
    if active.permit is not None:
        active.permit.reserve(num_tokens + max_tokens)
    active.prompt_tokens = num_tokens
    active.operation = spans.operation_of(prepared.encoded)
    metrics.PROMPT_TOKENS.inc(num_tokens)
    return Completion(
        prepared=prepared,
        model=model,
        # Made explicit: a replica that takes over in the middle needs the same limit.
        sampling=dataclasses.replace(
            sampling, max_tokens=max_tokens, constraint=prepared.constraint
        ),
        stop=stop,
        active=active,
    )


def _logprob(decoder: Decoder, logprob: TokenLogprob) -> DeltaLogprob:
    top = tuple(_one(decoder, token_id, value) for token_id, value in logprob.top)
    return _one(decoder, logprob.token_id, logprob.logprob)._replace(top=top)


def _one(decoder: Decoder, token_id: int, logprob: float | None) -> DeltaLogprob:
    return DeltaLogprob(decoder.token_text(token_id), decoder.token_bytes(token_id), logprob)
