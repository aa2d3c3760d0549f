"""The text of one generation, assembled from token ids.

    ids ─▶ detokenizer ─▶ stop strings ─▶ reasoning and tool-call parsers ─▶ Delta

Every part is synchronous and holds back what it cannot decide yet.
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh.errors import invalid
from mesh.protocol.deltas import Delta, DeltaLogprob
from mesh.protocol.logprobs import TokenLogprob
from mesh.protocol.sampling_params import SamplingParams
from mesh.protocol.tokens import TokenChunk
from orchestrator.generation import ModelInfo
from orchestrator.text.answer import NO_DELTA, AnswerDelta, AnswerParser
from orchestrator.text.detokenizer import Decoder
from orchestrator.text.preparation import PreparedPrompt
from orchestrator.text.stop_strings import StopStrings


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
        self._stop = StopStrings(stop)
        self._parser = prompt.answer or AnswerParser()
        # Tokens, and their log probabilities, whose text is still held back.
        self._num_held = 0
        self._held_logprobs: list[DeltaLogprob] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text. No more text will come out."""
        return self._stop.matched

    def push(self, chunk: TokenChunk) -> list[Delta]:
        """Takes the next chunk and returns the deltas that are certain now: at most one, and
        before it the echoed prompt. The chunk with the finish releases all held text.

        Raises MeshError if the prompt's log probabilities are missing.
        """
        deltas = [] if self._echo is None else self._push_echo(self._echo, chunk)
        part = self._push_ids(chunk) if chunk.token_ids else NO_DELTA
        if chunk.finish is not None and not self._stop.matched:
            part = part.joined(self._finish())
        if any(part):
            deltas.append(self._delta(part))
        return deltas

    def _push_ids(self, chunk: TokenChunk) -> AnswerDelta:
        token_ids = chunk.token_ids
        self._num_held += len(token_ids)
        for logprob in chunk.logprobs:
            self._held_logprobs.append(_delta_logprob(self._decoder, logprob))
        if token_ids[-1] in self._end_ids:
            token_ids = token_ids[:-1]
        part = self._parser.push(self._stop.push(self._detokenizer.push(token_ids)))
        return part.joined(self._parser.flush()) if self._stop.matched else part

    def _finish(self) -> AnswerDelta:
        """All text that was held back."""
        text = self._stop.push(self._detokenizer.flush())
        return self._parser.push(text + self._stop.flush()).joined(self._parser.flush())

    def _delta(self, part: AnswerDelta) -> Delta:
        """`part`, with all tokens since the last delta."""
        delta = Delta(
            part.text, self._num_held, self._held_logprobs, part.reasoning, part.tool_calls
        )
        self._num_held, self._held_logprobs = 0, []
        return delta

    def _push_echo(self, text: str, chunk: TokenChunk) -> list[Delta]:
        """The prompt as a delta of no tokens, once its log probabilities, if any, are known."""
        if not chunk.token_ids and self._echo_logprobs and not chunk.prompt_logprobs:
            return []
        self._echo = None
        if not self._echo_logprobs:
            return [Delta(text, 0)]
        if len(chunk.prompt_logprobs) != len(self._prompt_ids) - 1:
            raise invalid(
                "logprobs",
                "logprobs must be absent with echo: this engine returns none for the prompt",
            )
        logprobs = [_token(self._decoder, self._prompt_ids[0], None)]
        logprobs += [_delta_logprob(self._decoder, each) for each in chunk.prompt_logprobs]
        return [Delta(text, 0, logprobs)]


def _delta_logprob(decoder: Decoder, logprob: TokenLogprob) -> DeltaLogprob:
    top = tuple(_token(decoder, token_id, value) for token_id, value in logprob.top)
    return _token(decoder, logprob.token_id, logprob.logprob)._replace(top=top)


def _token(decoder: Decoder, token_id: int, logprob: float | None) -> DeltaLogprob:
    return DeltaLogprob(decoder.token_text(token_id), decoder.token_bytes(token_id), logprob)
