"""Tokens become text: detokenized, cut at stop strings, counted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

from orchestrator import failover, metrics
from orchestrator.clients.tokenizer import Encoded
from orchestrator.detokenizer import Decoder
from orchestrator.generation import (
    Delta,
    DeltaLogprob,
    Finish,
    FinishReason,
    ModelInfo,
    Sampling,
    Started,
    TokenChunk,
    TokenFinish,
    TokenLogprob,
    Usage,
)
from orchestrator.replicas import Replicas
from orchestrator.requests import ActiveRequest, RequestState
from orchestrator.stop_strings import StopStrings


class Completion:
    """The text of one generation. Iterate once; `usage` is right at any time."""

    def __init__(
        self,
        *,
        prompt: Encoded,
        model: ModelInfo,
        sampling: Sampling,
        stop: Sequence[str],
        active: ActiveRequest,
    ) -> None:
        """`sampling.max_tokens` must be set and fit the model's context."""
        self._prompt = prompt
        self._model = model
        self._sampling = sampling
        self._active = active
        self._detokenizer = prompt.decoder.stream()
        self._ends = sampling.ends(model)
        self._stop = StopStrings(stop)
        self._started = False
        # Tokens, and their log probabilities, of text that is still held back.
        self._num_held = 0
        self._logprobs_held: list[DeltaLogprob] = []
        self.usage = Usage(prompt_tokens=len(prompt.token_ids))

    async def stream(self, replicas: Replicas) -> AsyncGenerator[Started | Delta | Finish, None]:
        """First `Started`, then deltas, last one `Finish`. Raises MeshError."""
        active = self._active
        active.state = RequestState.WAITING
        tokens = failover.generate(
            replicas, self._model, self._prompt.token_ids, self._sampling, active
        )
        async with aclosing(tokens):
            async for item in tokens:
                if isinstance(item, TokenFinish):
                    for event in self._end(item):
                        yield event
                    return
                if not self._started:
                    self._started = True
                    yield Started(self._model.name, self.usage.prompt_tokens)
                if not item.token_ids:
                    continue  # an acceptance, and the later ones are of replicas that took over
                active.state = RequestState.STREAMING
                delta = self._push(item)
                if delta is not None:
                    yield delta
                if self._stop.matched:
                    # Leaving the block cancels what the engine still does for this request.
                    yield Finish(FinishReason.STOP, self.usage)
                    return

    def _push(self, chunk: TokenChunk) -> Delta | None:
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
        return self._take(self._stop.push(self._detokenizer.push(token_ids)))

    def _end(self, finish: TokenFinish) -> Iterator[Delta | Finish]:
        """What was held back, then the finish."""
        self.usage = finish.usage
        text = self._stop.push(self._detokenizer.flush())
        reason = FinishReason.STOP if self._stop.matched else finish.reason
        delta = self._take(text + self._stop.flush())
        if delta is not None:
            yield delta
        yield Finish(reason, self.usage)

    def _take(self, text: str) -> Delta | None:
        """A delta of `text` and all tokens so far; None if there is nothing to show."""
        if not text:
            return None
        delta = Delta(text, self._num_held, self._logprobs_held)
        self._num_held, self._logprobs_held = 0, []
        return delta


def _logprob(decoder: Decoder, logprob: TokenLogprob) -> DeltaLogprob:
    top = tuple(_one(decoder, token_id, value) for token_id, value in logprob.top)
    return _one(decoder, logprob.token_id, logprob.logprob)._replace(top=top)


def _one(decoder: Decoder, token_id: int, logprob: float) -> DeltaLogprob:
    return DeltaLogprob(decoder.token_text(token_id), decoder.token_bytes(token_id), logprob)
