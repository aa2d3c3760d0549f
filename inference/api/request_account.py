"""The account of one `Generate` call: recorded once, for metrics, span and access line."""

from __future__ import annotations

from inference.api import metrics, spans
from inference.engine.interface import EngineClient, Finish, SequenceOutput
from inference.sampling.sampling_params import SamplingParams
from mesh.context import annotate
from mesh.process.backlog import Work


class RequestAccount:
    """Records the acceptance, the tokens and the end of one sequence.

    The time to first token and the other durations are the engine's, in `Finish.timings`.
    """

    def __init__(self, work: Work, num_expected_tokens: int) -> None:
        """`num_expected_tokens` is added to the backlog when the sequence is accepted."""
        self._work = work
        self._num_expected_tokens = num_expected_tokens
        self._accepted = False

    def record(self, output: SequenceOutput) -> None:
        """Record an output of the sequence; call before it is sent, because sending may fail."""
        if not self._accepted:
            self._accepted = True
            self._work.expect(self._num_expected_tokens)
        self._work.done(len(output.token_ids))
        metrics.observe_output(output)
        if output.finish is not None:
            metrics.observe_finish(output.finish)
            self._record_finish(output.finish)

    def abandoned(self, finish: Finish) -> None:
        """Record how far the sequence came when its client left.

        Metrics are recorded later, by the engine, when the sequence's blocks are free.
        """
        self._record_finish(finish)

    def _record_finish(self, finish: Finish) -> None:
        spans.record_finish(finish)
        annotate(
            prompt_tokens=finish.num_prompt_tokens,
            completion_tokens=finish.num_completion_tokens,
            cached_tokens=finish.num_cached_tokens,
            ttft_seconds=finish.timings.ttft_seconds,
            finish_reason=finish.reason.value,
        )


def num_expected_tokens(
    engine: EngineClient, num_prompt_tokens: int, params: SamplingParams
) -> int:
    """Most tokens that a sequence may still generate."""
    room = engine.model_info.max_context - num_prompt_tokens
    return max(0, min(room, room if params.max_tokens is None else params.max_tokens))
