"""The engine's exceptions.

EngineError
├── InvalidSamplingParams   a sampling field is outside its limit
├── InvalidPrompt           the prompt is empty or has an id outside the vocabulary
├── ContextTooLong          prompt + max_tokens exceed the context or the KV cache
├── UnsupportedCall         the served model cannot compute what the call asks for
├── DuplicateRequest        a live sequence already has this request id
├── Overloaded              the running and waiting queues are full; retry later
├── DeadlineExceeded        the sequence's deadline passed before it finished
├── EngineUnavailable       the engine is not started, draining, stopped or unhealthy
├── StepFailed              a step, or a piece of embeddings, of this request and others failed
├── SequenceFailed          this sequence or embedding call failed, and no other
├── AdaptersDisabled        the engine serves no LoRA adapters, or loads none while it runs
├── AdapterNotFound         no LoRA adapter of this name is loaded
├── InvalidAdapter          a LoRA adapter's name or files are invalid
└── ModelLoadError          the model's files are missing, unsupported or inconsistent

The service maps them to `mesh.errors.ErrorKind`; the engine does not depend on a protocol.
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of the engine's exceptions; the message may be shown to a client."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        """`field` is the invalid field's name, for a caller whose API names it differently."""
        super().__init__(message)
        self.field = field


class InvalidSamplingParams(EngineError, ValueError):
    """A sampling field is outside its limit; the message names field, limit and given value."""


class InvalidPrompt(EngineError, ValueError):
    """The prompt is empty or has a token id outside the vocabulary."""


class ContextTooLong(EngineError, ValueError):
    """Prompt and max_tokens together exceed the context or the KV cache."""


class UnsupportedCall(EngineError):
    """The served model cannot compute it: text by an encoder, scores by a generation model."""


class DuplicateRequest(EngineError, ValueError):
    """A live sequence already has the request id."""


class Overloaded(EngineError):
    """The running and waiting queues are full."""


class DeadlineExceeded(EngineError):
    """The deadline passed before the sequence finished; the cause of an abort."""


class EngineUnavailable(EngineError):
    """The engine is not started, draining, stopped or unhealthy; also the cause of an abort."""


class StepFailed(EngineError):
    """A step of several sequences failed; the cause of an error finish of each.

    Also raised for each of several embedding calls whose inputs were in one failed piece.
    """


class SequenceFailed(EngineError):
    """A step failed for this sequence alone; the cause of an error finish.

    Also raised for an embedding call that was alone in a failed piece. The request's content may be
    the cause, so it says nothing about the engine.
    """


class AdaptersDisabled(EngineError):
    """The engine serves no LoRA adapters, or does not load them while it runs."""


class AdapterNotFound(EngineError):
    """No LoRA adapter of this name is loaded."""


class InvalidAdapter(EngineError, ValueError):
    """A LoRA adapter's name is taken, or its files are invalid; the message names the field."""


class ModelLoadError(EngineError):
    """The model cannot be loaded; the message names the file or field that is wrong."""
