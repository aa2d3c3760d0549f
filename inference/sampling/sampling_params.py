"""How a sequence's next token is chosen and when the sequence ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from inference.engine.errors import InvalidSamplingParams
from inference.structured_output.constraint import Constraint

MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 300
MAX_STOP_TOKEN_IDS = 64
_GREEDY_BELOW = 1e-5
_NO_BIAS: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling settings of one sequence; raises `InvalidSamplingParams` on construction.

    Applied in this order: logit bias, `min_tokens`, penalties, constraint, temperature, `top_k`,
    `top_p` (of what `top_k` left), `min_p`. Presence and frequency penalties look at the
    completion, the repetition penalty at prompt and completion.
    """

    max_tokens: int | None = None
    """Most tokens to generate; None is as many as the context and the KV cache hold."""
    temperature: float = 1.0
    """0 is greedy: the likeliest token, whatever `top_k`, `top_p`, `min_p` and `seed` say."""
    top_p: float = 1.0
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one."""
    seed: int | None = None
    """Same seed, same prompt, same tokens; None draws a seed at arrival."""
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_tokens: int = 0
    """No stop token is sampled before this many tokens."""
    logit_bias: Mapping[int, float] = field(default_factory=lambda: _NO_BIAS)
    num_logprobs: int | None = None
    """None: no logprobs; 0: the chosen token's; n: those of the n likeliest tokens as well."""
    num_prompt_logprobs: int | None = None
    """The same of the prompt's tokens but the first."""
    constraint: Constraint | None = None
    """The form of the text. Its end ends the sequence, whatever `ignore_eos` and `min_tokens`
    say, and the end-of-sequence tokens are drawn only where the form is complete."""

    def __post_init__(self) -> None:
        self._check_floats()
        if self.max_tokens is not None:
            _check("max_tokens", self.max_tokens, "at least 1", self.max_tokens >= 1)
        _check("top_k", self.top_k, "at least 0", self.top_k >= 0)
        _check("min_tokens", self.min_tokens, "at least 0", self.min_tokens >= 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _invalid("min_tokens", self.min_tokens, f"at most max_tokens ({self.max_tokens})")
        if self.seed is not None:
            in_range = -(2**63) <= self.seed < 2**64
            _check("seed", self.seed, "a 64-bit integer", in_range)
        for name in ("num_logprobs", "num_prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:
                _check(name, value, f"between 0 and {MAX_LOGPROBS}", 0 <= value <= MAX_LOGPROBS)
        self._check_token_ids()

    @property
    def is_greedy(self) -> bool:
        return self.temperature < _GREEDY_BELOW

    @property
    def has_penalties(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    @property
    def is_foreseen(self) -> bool:
        """Whether how a token is sampled does not depend on the one before it."""
        return self.constraint is None and self.num_logprobs is None and not self.has_penalties

    def _check_floats(self) -> None:
        _check_between("temperature", self.temperature, 0.0, 100.0)
        top_p_in_range = 0.0 < self.top_p <= 1.0  # false for NaN as well
        _check("top_p", self.top_p, "more than 0 and at most 1", top_p_in_range)
        _check_between("min_p", self.min_p, 0.0, 1.0)
        in_range = 0.0 < self.repetition_penalty <= 10.0
        _check("repetition_penalty", self.repetition_penalty, "more than 0, at most 10", in_range)
        _check_between("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_between("frequency_penalty", self.frequency_penalty, -2.0, 2.0)

    def _check_token_ids(self) -> None:
        num_stop, num_bias = len(self.stop_token_ids), len(self.logit_bias)
        limit = f"at most {MAX_STOP_TOKEN_IDS} ids"
        _check("stop_token_ids", f"{num_stop} ids", limit, num_stop <= MAX_STOP_TOKEN_IDS)
        limit = f"at most {MAX_LOGIT_BIAS} ids"
        _check("logit_bias", f"{num_bias} ids", limit, num_bias <= MAX_LOGIT_BIAS)
        for token_id, bias in self.logit_bias.items():
            _check_between(f"logit_bias[{token_id}]", bias, -100.0, 100.0)


def _check(name: str, value: object, limit: str, holds: bool) -> None:
    if not holds:
        raise _invalid(name, value, limit)


def _invalid(name: str, value: object, limit: str) -> InvalidSamplingParams:
    return InvalidSamplingParams(f"{name} must be {limit}. Given: {value}")


def _check_between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # so for NaN as well
        raise _invalid(name, value, f"between {low:g} and {high:g}")
