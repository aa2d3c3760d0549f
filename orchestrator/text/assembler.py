"""The text of one generation, assembled from token ids.

    ids ─▶ detokenizer ─▶ stop strings ─▶ reasoning and tool-call parsers ─▶ Delta

Every part is synchronous and holds back what it cannot decide yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from mesh.errors import MeshError, invalid
from mesh.protocol.deltas import Delta, DeltaLogprob
from mesh.protocol.logprobs import TokenLogprob
from mesh.protocol.sampling_params import SamplingParams
from mesh.protocol.tokens import TokenChunk
from mesh.text.stop_strings import StopStrings
from orchestrator.generation import ModelInfo
from orchestrator.text.answer import NO_DELTA, AnswerDelta, AnswerParser
from orchestrator.text.preparation import PreparedPrompt
from orchestrator.text.token_texts import AlignedLogprobs, delta_logprob, prompt_texts

ECHO_TOKENS = 64
"""Tokens of a prompt that are echoed at once with their log probabilities, in about 2 ms."""


class TextAssembler:
    """Takes the chunks of one generation and returns the deltas to send."""

    def __init__(
        self,
        prompt: PreparedPrompt,
        model: ModelInfo,
        sampling: SamplingParams,
        stop: Sequence[str],
    ) -> None:
        self._decoder = prompt.encoded.decoder
        self._prompt_ids = prompt.encoded.token_ids
        self._echo = prompt.echo
        """Text of the prompt, which is sent first; None if not requested, or already sent."""
        self._echo_logprobs = sampling.num_prompt_logprobs is not None
        self._end_ids = sampling.end_token_ids(model.eos_token_ids)
        self._detokenizer = self._decoder.stream(prompt.kept)
        self._logprobs = (
            None if sampling.num_logprobs is None else AlignedLogprobs(self._decoder, prompt.kept)
        )
        self._stop = StopStrings(stop)
        self._num_unstoppable = sampling.min_tokens if stop else 0
        """Next tokens in which no stop string may end."""
        self._parser = prompt.answer or AnswerParser()
        self._num_held = 0
        """Tokens whose text is still held back."""

    @property
    def stop_string(self) -> str:
        """The stop string that has ended the text, so that no more will come out; else empty."""
        return self._stop.matched

    def echo(self, logprobs: Sequence[TokenLogprob], in_parts: bool = True) -> Iterator[Delta]:
        """The echoed prompt with its log probabilities, before the chunk that has them is pushed.

        In deltas of `ECHO_TOKENS` tokens, each of which is computed when it is read: there can be
        thousands, and others wait meanwhile. In one delta without `in_parts`. Raises MeshError if
        there are too few.
        """
        text, self._echo = self._echo, None
        if text is None or not self._echo_logprobs:
            self._echo = text
            return
        if len(logprobs) != len(self._prompt_ids) - 1:
            raise _missing_logprobs()
        texts = prompt_texts(self._decoder, self._prompt_ids)
        size = ECHO_TOKENS if in_parts else len(self._prompt_ids)
        for begin in range(0, len(self._prompt_ids), size):
            tokens = list(islice(texts, size))
            values: list[TokenLogprob | None] = [None] if begin == 0 else []
            values += logprobs[max(0, begin - 1) : begin + size - 1]
            part = "".join(token.text for token in tokens)
            if begin + size >= len(self._prompt_ids) or not text.startswith(part):
                part = text  # the rest
            text = text[len(part) :]
            yield Delta(
                part,
                0,
                [delta_logprob(self._decoder, *each) for each in zip(values, tokens, strict=True)],
            )

    def push(self, chunk: TokenChunk) -> list[Delta]:
        """Takes the next chunk and returns the deltas that are certain now: at most one, and
        before it the echoed prompt. The chunk with the finish releases all held text.

        Raises MeshError if the prompt's log probabilities are missing.
        """
        deltas = [] if self._echo is None else self._push_echo(self._echo, chunk)
        part = self._push_tokens(chunk) if chunk.token_ids else NO_DELTA
        if chunk.finish is not None and not self._stop.matched:
            part = part.joined(self._finish())
        logprobs = () if self._logprobs is None else self._take_logprobs(chunk.finish is not None)
        if logprobs or any(part):
            deltas.append(
                Delta(part.text, self._num_held, logprobs, part.reasoning, part.tool_calls)
            )
            self._num_held = 0
        return deltas

    def _push_tokens(self, chunk: TokenChunk) -> AnswerDelta:
        token_ids, logprobs = chunk.token_ids, chunk.logprobs
        self._num_held += len(token_ids)
        if not logprobs:
            self._logprobs = None  # this engine has none
        if token_ids[-1] in self._end_ids:
            token_ids, logprobs = token_ids[:-1], logprobs[:-1]
        text = ""
        if self._num_unstoppable:
            number = self._num_unstoppable
            text = self._stop.skip(self._decode(token_ids[:number], logprobs[:number]))
            token_ids, logprobs = token_ids[number:], logprobs[number:]
            self._num_unstoppable = max(0, number - len(chunk.token_ids))
        text += self._stop.push(self._decode(token_ids, logprobs))
        part = self._parser.push(text)
        if not self._stop.matched:
            return part
        if self._logprobs is not None:
            self._logprobs.flush()
        return part.joined(self._parser.flush())

    def _decode(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob]) -> str:
        if self._logprobs is None:
            return self._detokenizer.push(token_ids)
        return self._logprobs.push(logprobs)

    def _finish(self) -> AnswerDelta:
        """All text that was held back."""
        held = self._detokenizer if self._logprobs is None else self._logprobs
        text = (self._stop.skip if self._num_unstoppable else self._stop.push)(held.flush())
        return self._parser.push(text + self._stop.flush()).joined(self._parser.flush())

    def _take_logprobs(self, finished: bool) -> list[DeltaLogprob]:
        assert self._logprobs is not None, "log probabilities are requested"
        ended = finished or self._stop.matched
        return self._logprobs.take(self._parser.spans, None if ended else self._parser.position)

    def _push_echo(self, text: str, chunk: TokenChunk) -> list[Delta]:
        """The prompt as a delta of no tokens, if it has no log probabilities."""
        if not chunk.token_ids and self._echo_logprobs:
            return []
        if self._echo_logprobs and len(self._prompt_ids) > 1:
            raise _missing_logprobs()
        if self._echo_logprobs:
            return list(self.echo(()))
        self._echo = None
        return [Delta(text, 0)]


def _missing_logprobs() -> MeshError:
    return invalid(
        "num_prompt_logprobs",
        "num_prompt_logprobs must be absent: this engine returns none for the prompt",
    )
