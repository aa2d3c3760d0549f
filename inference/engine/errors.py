"""What the engine refuses or fails with.

EngineError
├── InvalidSamplingParams   a sampling field is outside its limit
├── InvalidPrompt           the prompt is empty or holds an id the model does not know
├── ContextTooLong          prompt + max_tokens can never fit
├── DuplicateRequest        a live sequence already has this request id
├── Overloaded              running and waiting lines are full; worth another try
├── DeadlineExceeded        the sequence's deadline passed before it finished
├── EngineUnavailable       the engine is not started, draining, stopped or unhealthy
├── StepFailed              a step broke under this sequence
└── ModelLoadError          the model's files are missing, unsupported or do not fit together

Only the service maps them to the mesh's error kinds; the engine knows no protocol.
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of everything the engine raises on purpose; the message is fit for a client."""


class InvalidSamplingParams(EngineError, ValueError):
    """Raised where a sampling field is outside its limit; names field, limit and given value."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        """`field` is the name of a field that a caller may want to call otherwise."""
        super().__init__(message)
        self.field = field


class InvalidPrompt(EngineError, ValueError):
    """Raised where the prompt is empty or holds a token id outside the vocabulary."""


class ContextTooLong(EngineError, ValueError):
    """Raised where prompt + max_tokens can never fit the context or the KV cache."""


class DuplicateRequest(EngineError, ValueError):
    """Raised where a live sequence already carries the request id."""


class Overloaded(EngineError):
    """Raised where as many sequences run and wait as may."""


class DeadlineExceeded(EngineError):
    """The cause of an abort: the deadline passed before the sequence finished."""


class EngineUnavailable(EngineError):
    """Raised, or the cause of an abort, where the engine does not take or finish work."""


class StepFailed(EngineError):
    """The cause of an error finish: the step that carried the sequence broke."""


class ModelLoadError(EngineError):
    """Raised where a model cannot be loaded; says which file or field is at fault."""
