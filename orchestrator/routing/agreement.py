"""Which model a name means when its replicas differ, or differ from the name's tokenizer.

Mixing them would produce text that no model wrote: ids of one vocabulary decoded with another, or
a stream that begins with one model's weights and continues with another's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from orchestrator.generation import ModelInfo

SHOWN_DIGITS = 12
"""Length of a digest in messages."""


class Refused(NamedTuple):
    """A ready replica that gets no requests, and why: a sentence without its address."""

    address: str
    reason: str


class Agreement:
    """Chooses one model for each name. For one event loop."""

    def __init__(self, vocabulary_of: Callable[[str], str]) -> None:
        """`vocabulary_of` a name returns its tokenizer's digest, empty if it is not known."""
        self._vocabulary_of = vocabulary_of
        self._chosen: Mapping[str, ModelInfo] = {}
        self._given: list[tuple[ModelInfo, str]] = []
        """Of the last choice: the replicas' models and their tokenizers' vocabularies."""

    def choose(self, models: Iterable[ModelInfo]) -> Mapping[str, ModelInfo]:
        """The model of each name, from the models of all ready replicas.

        Every request asks for it, so it is computed for a change only.

        Only a model with its tokenizer's vocabulary can be chosen. Among several it is the one that
        most replicas serve, so that a rollout changes over when half of the replicas are new; then
        the one chosen before.
        """
        given = [(model, self._vocabulary_of(model.tokenizer)) for model in models]
        if given != self._given:
            self._given, self._chosen = given, self._choose([model for model, _ in given])
        return self._chosen

    def _choose(self, models: Iterable[ModelInfo]) -> dict[str, ModelInfo]:
        chosen: dict[str, ModelInfo] = {}
        rank: dict[str, tuple[int, int, bool, str]] = {}
        replicas = Counter(model for model in models if self._has_vocabulary(model))
        for model in replicas:
            if not model.model_sha256 and _has_equal_with_digest(model, replicas):
                continue
            name = model.name
            num_replicas = sum(num for other, num in replicas.items() if can_replace(other, model))
            # Of equal models without digests, the one that knows the end-of-sequence tokens.
            known = 0 if model.model_sha256 else len(model.eos_token_ids)
            own = (num_replicas, known, model == self._chosen.get(name), model.model_sha256)
            if name not in chosen or own > rank[name]:
                chosen[name], rank[name] = model, own
        return chosen

    def refused(self, models: Mapping[str, ModelInfo]) -> list[Refused]:
        """The replicas, given with their models by address, that differ from the chosen model."""
        chosen = self.choose(models.values())
        return [
            Refused(address, self._reason(model, chosen.get(model.name)))
            for address, model in models.items()
            if not (model.name in chosen and can_replace(model, chosen[model.name]))
        ]

    def _has_vocabulary(self, model: ModelInfo) -> bool:
        return same_vocabulary(model.vocabulary_sha256, self._vocabulary_of(model.tokenizer))

    def _reason(self, model: ModelInfo, chosen: ModelInfo | None) -> str:
        if not self._has_vocabulary(model):
            return (
                f"an engine of model {model.name!r} has another vocabulary "
                f"({model.vocabulary_sha256[:SHOWN_DIGITS]}) than the model's tokenizer "
                f"({self._vocabulary_of(model.name)[:SHOWN_DIGITS]})"
            )
        assert chosen is not None  # there is a choice wherever a model has the vocabulary
        return (
            f"an engine of model {model.name!r} has other weights or settings "
            f"({_digest(model)}) than the model's other engines ({_digest(chosen)})"
        )


def can_replace(model: ModelInfo | None, other: ModelInfo) -> bool:
    """Whether an engine of one model, None if not known, can continue the other's streams.

    Both are equal; or one has no digest, because its protocol has none (vLLM): then name and
    context length are equal, and the weights are trusted to be.
    """
    if model is None:
        return False
    if model is other:
        return True  # nearly always
    if model.model_sha256 and other.model_sha256:
        # Engines of earlier versions do not report the length of their embeddings.
        return model._replace(embedding_length=other.embedding_length) == other
    return (
        model.name == other.name
        and model.context_length == other.context_length
        and same_vocabulary(model.vocabulary_sha256, other.vocabulary_sha256)
    )


def _has_equal_with_digest(model: ModelInfo, others: Iterable[ModelInfo]) -> bool:
    return any(other.model_sha256 and can_replace(model, other) for other in others)


def same_vocabulary(one: str, other: str) -> bool:
    """Whether ids of one vocabulary may be used with another; an unknown one is trusted."""
    return not one or not other or one == other


def _digest(model: ModelInfo) -> str:
    digest = model.model_sha256[:SHOWN_DIGITS] or "digest unknown"
    return f"{digest}, context {model.context_length}"
