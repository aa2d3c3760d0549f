"""The tokens of one request, over all its choices."""

from __future__ import annotations

from mesh.protocol.deltas import Delta
from mesh.protocol.finish import GenerationFinish


class UsageTotal:
    """Counts tokens as they arrive, so that it is correct after an early disconnect."""

    def __init__(self, prompt_tokens: int | None, num_choices: int = 1, n: int = 1) -> None:
        """`prompt_tokens` is None until the finish reports it; each prompt has `n` choices."""
        self.prompt_tokens = prompt_tokens
        self._n = n
        self._cached_tokens = 0
        self._completion_tokens = [0] * num_choices
        self._finish_reasons: set[str] = set()
        self._reasoning_tokens = 0

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far, for all choices."""
        return sum(self._completion_tokens)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens from the prefix cache."""
        return self._cached_tokens

    @property
    def reasoning_tokens(self) -> int:
        """Completion tokens of reasoning."""
        return self._reasoning_tokens

    def another(self, prompt_tokens: int) -> None:
        """Begin another generation of the same request, which counts as one more choice."""
        self.prompt_tokens = (self.prompt_tokens or 0) + prompt_tokens
        self._completion_tokens.append(0)

    def add(self, index: int, delta: Delta) -> None:
        """Count a delta of choice `index`."""
        self._completion_tokens[index] += delta.num_tokens
        if delta.reasoning:
            self._reasoning_tokens += delta.num_tokens

    def finish(self, index: int, finish: GenerationFinish) -> None:
        """Take the final count of choice `index`."""
        self._completion_tokens[index] = finish.usage.completion_tokens
        if self.prompt_tokens is None:
            self.prompt_tokens = finish.usage.prompt_tokens
        if index % self._n == 0:
            # The first choice of a prompt caches it for the others, whose hits are not counted.
            self._cached_tokens += finish.usage.cached_tokens
        self._finish_reasons.add(finish.reason)

    def log_fields(self) -> dict[str, object]:
        """Fields of the access log line, without those that are unknown."""
        fields: dict[str, object] = {}
        if self.prompt_tokens is not None:
            fields["prompt_tokens"] = self.prompt_tokens
        if self._completion_tokens:
            fields["completion_tokens"] = self.completion_tokens
        if self._finish_reasons:
            fields["finish_reason"] = ",".join(sorted(self._finish_reasons))
        return fields

    def anthropic(self) -> dict[str, object]:
        """Anthropic's usage object, whose input tokens are those that were not cached."""
        prompt_tokens, cached_tokens = self.prompt_tokens or 0, self._cached_tokens
        return {
            "input_tokens": prompt_tokens - cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached_tokens,
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"thinking_tokens": self._reasoning_tokens},
            "server_tool_use": None,
        }

    def openai(self) -> dict[str, object]:
        """OpenAI's usage object."""
        prompt_tokens, completion_tokens = self.prompt_tokens or 0, self.completion_tokens
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self._cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self._reasoning_tokens},
        }
