"""The bytes of each token, read from the model's tokenizer.json, for structured output only.

The engine's inputs and outputs are token ids; it neither encodes nor decodes text. To constrain
an output it needs to know which token ids spell which bytes.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from inference.engine.errors import InvalidSamplingParams
from inference.structured_output.constraint import invalid_constraint
from inference.structured_output.matcher import Matcher, first_line
from mesh.protocol.constraints import ConstraintForm, OutputConstraint

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_KEPT = 32
"""Size of the LRU cache of compiled constraints: an application repeats the same few."""

MAX_LEXER_STATES = 50_000
"""Limits the memory of a malicious constraint to about 100 MB."""

_JSON_OPTIONS: JsonCompileOptions = {"whitespace_pattern": r"\n?( {0,24}|\t{0,8})"}
"""Limits white space: small models otherwise generate it without end."""

_ANY_OBJECT = '{"type":"object"}'


class Vocabulary:
    """Compiles constraints and creates their matchers. Thread-safe."""

    def __init__(self, tokenizer: LLTokenizer | None, problem: str = "") -> None:
        """`problem` is the reason why `tokenizer` is None."""
        self._tokenizer = tokenizer
        self._problem = problem
        self._compiled: OrderedDict[OutputConstraint, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: Path, *, vocab_size: int, eos_token_ids: Iterable[int]) -> Vocabulary:
        """Reads tokenizer.json; if that fails, the vocabulary rejects every constraint."""
        eos = list(eos_token_ids)
        path = folder / "tokenizer.json"
        if not eos:
            return cls(None, "the model names no end-of-sequence token")
        if not path.is_file():
            return cls(None, "the model's folder has no tokenizer.json")
        try:
            text = path.read_text(encoding="utf-8")
            tokenizer = LLTokenizer(text, n_vocab=vocab_size, eos_token=eos)
        except (ValueError, OSError) as error:
            return cls(None, f"the model's tokenizer.json cannot be parsed: {error}")
        return cls(tokenizer)

    @property
    def problem(self) -> str:
        """Why constraints are not supported; empty if they are."""
        return self._problem

    def matcher(self, constraint: OutputConstraint) -> Matcher:
        """A matcher in its initial state; compiling can take a second.

        Raises `InvalidSamplingParams` if the constraint is invalid or not supported.
        """
        if self._tokenizer is None:
            raise InvalidSamplingParams(
                f"{constraint.field} is not supported: {self._problem}", field=constraint.field
            )
        with self._lock:
            compiled = self._compiled.get(constraint)
            if compiled is not None:
                self._compiled.move_to_end(constraint)
        if compiled is None:
            compiled = _compile(self._tokenizer, constraint)
            with self._lock:
                self._compiled[constraint] = compiled
                if len(self._compiled) > MAX_KEPT:
                    self._compiled.popitem(last=False)
        return Matcher(compiled.deep_copy(), constraint)


def _compile(tokenizer: LLTokenizer, constraint: OutputConstraint) -> LLMatcher:
    limits = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
    compiled = LLMatcher(tokenizer, _grammar(constraint), log_level=0, limits=limits)
    if compiled.is_error():
        raise invalid_constraint(constraint, f"is not valid: {_reason(compiled.get_error())}")
    return compiled


def _grammar(constraint: OutputConstraint) -> str:
    match constraint.form:
        case ConstraintForm.JSON_SCHEMA:
            schema = _schema(constraint)
            return LLMatcher.grammar_from_json_schema(schema, defaults=_JSON_OPTIONS)
        case ConstraintForm.JSON_OBJECT:
            return LLMatcher.grammar_from_json_schema(_ANY_OBJECT, defaults=_JSON_OPTIONS)
        case ConstraintForm.REGEX:
            return LLMatcher.grammar_from_regex(constraint.text)
        case ConstraintForm.GRAMMAR:
            return LLMatcher.grammar_from_lark(constraint.text)


def _schema(constraint: OutputConstraint) -> str:
    """The schema as a JSON object: the library accepts options only with an object."""
    try:
        schema = json.loads(constraint.text)
    except (ValueError, RecursionError) as error:
        raise invalid_constraint(constraint, f"is not valid JSON: {error}") from error
    if not isinstance(schema, dict | bool):
        kind = type(schema).__name__
        raise invalid_constraint(constraint, f"must be an object, true or false. Given: {kind}")
    if schema is False:
        raise invalid_constraint(constraint, "allows no value. Given: false")
    return "{}" if schema is True else constraint.text


def _reason(text: str) -> str:
    """The first line of a message, followed by its first line that starts with "error: "."""
    detail = [line for line in text.splitlines() if line.startswith("error: ")]
    return ": ".join([first_line(text), *(line.removeprefix("error: ") for line in detail[:1])])
