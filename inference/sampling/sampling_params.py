"""The engine's sampling parameters: the shared ones with every default filled in."""

from __future__ import annotations

from dataclasses import dataclass

from inference.engine.errors import InvalidSamplingParams
from inference.structured_output.constraint import invalid_constraint
from mesh.protocol import sampling_params
from mesh.protocol.sampling_params import first_violation

_GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams(sampling_params.SamplingParams):
    """Sampling parameters of one sequence; raises `InvalidSamplingParams` on construction.

    The order of application is: logit bias, `min_tokens`, penalties, constraint, temperature,
    `top_k`, `top_p` (within the tokens that `top_k` keeps), `min_p`. Presence and frequency
    penalties apply to the completion, the repetition penalty to prompt and completion. The fields
    below always have a value here; the shared parameters leave them open to the model's own
    defaults.
    """

    temperature: float = 1.0
    """0 is greedy decoding, which ignores `top_k`, `top_p`, `min_p` and `seed`."""
    top_p: float = 1.0
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    min_p: float = 0.0
    """Drop tokens whose probability is below this fraction of the most likely token's."""
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        violation = first_violation(self)
        if violation is not None:
            raise InvalidSamplingParams(violation.message, field=violation.field)
        if self.constraint is not None and self.constraint.problem is not None:
            raise invalid_constraint(self.constraint, self.constraint.problem)

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
    def supports_async_scheduling(self) -> bool:
        """Whether a token can be sampled before the host knows the token before it."""
        return self.constraint is None and self.num_logprobs is None and not self.has_penalties
