"""What a request took, over all its choices."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.observability.request_record import RequestRecord
from mesh.protocol.deltas import Delta
from mesh.protocol.finish import GenerationFinish, GenerationStarted


class UsageTotal:
    """Counts while the choices are generated, so that it is right whenever they end."""

    def __init__(self, started: Sequence[GenerationStarted], n: int, record: RequestRecord) -> None:
        """`n` choices follow each other for each prompt, which counts once."""
        self._prompt_tokens = sum(each.prompt_tokens for each in started[::n])
        self._n = n
        self._cached_tokens = 0
        self._completion_tokens = [0] * len(started)
        self._reasons: list[str] = []
        self._reasoning_tokens = 0
        self._observation = record
        record.summary = self.summary

    def add(self, index: int, delta: Delta) -> None:
        """More of a choice."""
        self._completion_tokens[index] += delta.num_tokens
        if delta.reasoning:
            self._reasoning_tokens += delta.num_tokens

    def finish(self, index: int, finish: GenerationFinish) -> None:
        """The end of a choice."""
        self._completion_tokens[index] = finish.usage.completion_tokens
        if index % self._n == 0:
            # Of the others' prompts what was cached is mostly this one's.
            self._cached_tokens += finish.usage.cached_tokens
        self._reasons.append(finish.reason)
        self._observation.finished(finish)

    def summary(self) -> dict[str, object]:
        """For the access line."""
        reasons = {"finish_reason": ",".join(sorted(set(self._reasons)))} if self._reasons else {}
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": sum(self._completion_tokens),
            **reasons,
        }

    def usage(self) -> dict[str, object]:
        """The usage object."""
        completion_tokens = sum(self._completion_tokens)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self._prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self._cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self._reasoning_tokens},
        }
