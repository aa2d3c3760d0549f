"""Checks of a request's fields, before any work on it.

Messages name the field of the RPC's request, the limit and the given value.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence

from mesh.errors import ErrorKind, MeshError, context_too_long_message, invalid
from mesh.protocol.model_kind import ModelKind
from mesh.protocol.sampling_params import (
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    SamplingParams,
    first_violation,
)
from mesh.protocol.search import (
    DEFAULT_EXAMPLES,
    DEFAULT_RESULTS,
    DEFAULT_SEARCHES,
    MAX_EXAMPLES,
    MAX_QUERY_CHARACTERS,
    MAX_RELATED,
    MAX_RESULTS,
    MAX_SEARCHES,
    MAX_TURN_CHARACTERS,
    MAX_TURNS,
)
from mesh.protocol.summary import Turn
from orchestrator.generation import ModelInfo
from orchestrator.routing.agreement import same_vocabulary


def check_sampling(sampling: SamplingParams) -> None:
    """Raises MeshError (INVALID_REQUEST) for the first value that is out of bounds."""
    violation = first_violation(sampling)
    if violation is not None:
        raise invalid(violation.field, violation.message)


def check_stop(stop: Sequence[str]) -> None:
    """Raises MeshError (INVALID_REQUEST) for too many, empty or too long stop strings."""
    if len(stop) > MAX_STOP_STRINGS:
        raise invalid(
            "stop", f"stop must have at most {MAX_STOP_STRINGS} strings, given {len(stop)}"
        )
    for number, text in enumerate(stop):
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            raise invalid(
                f"stop[{number}]",
                f"stop[{number}] must have 1 to {MAX_STOP_CHARACTERS} characters, "
                f"given {len(text)}",
            )


def check_history(history: Sequence[Turn]) -> Sequence[Turn]:
    """Raises MeshError (INVALID_REQUEST) for too many or too long turns."""
    if len(history) > MAX_TURNS:
        raise invalid(
            "history", f"history must have at most {MAX_TURNS} items, given {len(history)}"
        )
    for number, turn in enumerate(history):
        check_query(turn.query, f"history[{number}].query")
        if len(turn.summary) > MAX_TURN_CHARACTERS:
            raise invalid(
                f"history[{number}].summary",
                f"history[{number}].summary must have at most {MAX_TURN_CHARACTERS} characters, "
                f"given {len(turn.summary)}",
            )
    return history


def check_max_searches(max_searches: int, has_history: bool) -> int:
    """The number of queries; 0 is the default. Raises MeshError (INVALID_REQUEST)."""
    if max_searches > MAX_SEARCHES:
        message = f"max_searches must be between 1 and {MAX_SEARCHES}, given {max_searches}"
        raise invalid("max_searches", message)
    return max_searches or (DEFAULT_SEARCHES if has_history else 1)


def check_num_related(num_related: int) -> int:
    """Raises MeshError (INVALID_REQUEST) if the number is out of bounds."""
    if num_related > MAX_RELATED:
        message = f"num_related must be between 0 and {MAX_RELATED}, given {num_related}"
        raise invalid("num_related", message)
    return num_related


def check_num_questions(number: int) -> int:
    """The number of examples; 0 is the default. Raises MeshError (INVALID_REQUEST)."""
    if number > MAX_EXAMPLES:
        message = f"num_questions must be between 1 and {MAX_EXAMPLES}, given {number}"
        raise invalid("num_questions", message)
    return number or DEFAULT_EXAMPLES


def check_query(query: str, field: str = "query") -> str:
    """The query without surrounding white space; `field` is its name for errors.

    Raises MeshError (INVALID_REQUEST) for its length or for control characters.
    """
    query = query.strip()
    if not 1 <= len(query) <= MAX_QUERY_CHARACTERS:
        raise invalid(
            field,
            f"{field} must have 1 to {MAX_QUERY_CHARACTERS} characters, given {len(query)}",
        )
    for place, character in enumerate(query, 1):
        if unicodedata.category(character) == "Cc" and character not in "\t\n\r":
            raise invalid(
                field,
                f"{field} must have no control characters but tabs and line ends, "
                f"given U+{ord(character):04X} as character {place}",
            )
    return query


def check_num_results(num_results: int) -> int:
    """The number of results; 0 is the default. Raises MeshError (INVALID_REQUEST)."""
    if num_results > MAX_RESULTS:
        raise invalid(
            "num_results", f"num_results must be between 1 and {MAX_RESULTS}, given {num_results}"
        )
    return num_results or DEFAULT_RESULTS


def room_for_completion(
    prompt_tokens: int, max_tokens: int | None, model: ModelInfo, prompt_field: str
) -> int:
    """How many tokens may be generated.

    Raises MeshError (CONTEXT_TOO_LONG), which names max_tokens, or `prompt_field` if the prompt
    alone fills the context.
    """
    limit = model.context_length
    room = limit - prompt_tokens
    if room >= max(1, max_tokens or 0):
        return room if max_tokens is None else max_tokens
    if max_tokens is None:
        given = (
            f"your {prompt_field} resulted in {prompt_tokens} tokens, and the completion needs at "
            f"least 1. Please reduce the length of the {prompt_field}."
        )
    else:
        given = (
            f"you requested {prompt_tokens + max_tokens} tokens ({prompt_tokens} in the "
            f"{prompt_field}, {max_tokens} in the completion). Please reduce the length of the "
            f"{prompt_field} or completion."
        )
    raise MeshError(
        ErrorKind.CONTEXT_TOO_LONG,
        context_too_long_message(limit, given),
        param="max_tokens" if room >= 1 else prompt_field,
    )


def with_context_length(error: MeshError, model: ModelInfo) -> MeshError:
    """The tokenizer's error, with the context length if the prompt has too many characters."""
    if error.kind is not ErrorKind.CONTEXT_TOO_LONG:
        return error
    message = context_too_long_message(model.context_length, f"{error.message}.")
    return MeshError(error.kind, message, param=error.param)


def check_min_tokens(min_tokens: int, room: int) -> None:
    """Raises MeshError (INVALID_REQUEST) if fewer tokens than `min_tokens` may be generated."""
    if min_tokens > room:
        raise invalid(
            "min_tokens",
            f"min_tokens must be at most the {room} tokens that the prompt leaves in the context, "
            f"given {min_tokens}",
        )


def check_vocabulary(vocabulary_sha256: str, model: ModelInfo) -> None:
    """Raises MeshError (UNAVAILABLE) if token ids are of another vocabulary than the model's.

    Happens while a tokenizer or its engines are being replaced.
    """
    if not same_vocabulary(vocabulary_sha256, model.vocabulary_sha256):
        raise MeshError(
            ErrorKind.UNAVAILABLE,
            f"the tokenizer and the engines of model {model.name!r} have different vocabularies",
            retry_after=1.0,
        )


GENERATES = (ModelKind.GENERATION,)
EMBEDS = (ModelKind.EMBEDDING, ModelKind.GENERATION)
SCORES = (ModelKind.SCORE, ModelKind.EMBEDDING, ModelKind.GENERATION)
TOKENIZES = (ModelKind.GENERATION, ModelKind.EMBEDDING, ModelKind.SCORE)
"""The kinds of models that each operation can use, the preferred one first."""

_LACKING = {
    ModelKind.EMBEDDING: "is an embedding model, which generates no text",
    ModelKind.SCORE: "is a cross-encoder, which gives scores for pairs of texts only",
}


def of_kinds(
    models: Mapping[str, ModelInfo | None], kinds: Sequence[ModelKind]
) -> dict[str, ModelKind]:
    """The models, by name, that have one of `kinds`, with their kinds.

    A model that was never served, None, is assumed to generate.
    """
    known = {
        name: ModelKind.GENERATION if model is None else model.kind
        for name, model in models.items()
    }
    return {name: kind for name, kind in known.items() if kind in kinds}


def only_name(models: Mapping[str, ModelInfo | None], kinds: Sequence[ModelKind]) -> str:
    """The name of the only model of the first of `kinds` that there is; "" if there are several.

    LoRA adapters do not count: a request must name them.
    """
    adapters = {name for name, model in models.items() if model is not None and model.base}
    usable = of_kinds(models, kinds)
    for kind in kinds:
        preferred = [name for name in usable if usable[name] is kind and name not in adapters]
        if preferred:
            return preferred[0] if len(preferred) == 1 else ""
    return ""


def choose_model(
    name: str,
    served: Sequence[ModelInfo],
    known: Collection[str] = (),
    kinds: Sequence[ModelKind] = GENERATES,
) -> ModelInfo:
    """The model of this name; "" is the only one of the first of `kinds` that is served.

    `known` are the names of the models, those without a ready engine included. Raises MeshError:
    INVALID_REQUEST for "" if there are several, or for a model of another kind, else
    MODEL_NOT_FOUND.
    """
    by_name = {model.name: model for model in served}
    if not name and by_name.keys() >= set(known):
        name = only_name(by_name, kinds)
    everything: dict[str, ModelInfo | None] = {**dict.fromkeys(known), **by_name}
    if not name:
        names = ", ".join(sorted(of_kinds(everything, kinds)))
        raise invalid("model", f"model must be one of {names}, given none")
    if name not in by_name:
        names = ", ".join(sorted(everything))
        message = f"no model {name!r} is served; served models: {names}"
        raise MeshError(ErrorKind.MODEL_NOT_FOUND, message, param="model")
    model = by_name[name]
    if model.kind not in kinds:
        raise invalid("model", f"model {name!r} {_LACKING[model.kind]}")
    return model
