"""What bytes each token stands for, read from the model's folder: for constraints alone.

The engine takes and gives ids. To keep an answer to a form it must know which ids spell it, and
that is all that is read out of tokenizer.json: the engine neither encodes nor decodes text.
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
"""Constraints whose compiled form is kept: an application sends the same few again and again."""

MAX_LEXER_STATES = 50_000
"""About 100 MB at most for a constraint that was written to take memory."""

_JSON_OPTIONS: JsonCompileOptions = {"whitespace_pattern": r"\n?( {0,24}|\t{0,8})"}
"""Indented or not, but not white space for ever, which is where small models get lost."""

_ANY_OBJECT = '{"type":"object"}'


class Vocabulary:
    """Makes the matchers of constraints. For any thread."""

    def __init__(self, tokenizer: LLTokenizer | None, problem: str = "") -> None:
        """`problem` says why there is no `tokenizer`."""
        self._tokenizer = tokenizer
        self._problem = problem
        self._compiled: OrderedDict[OutputConstraint, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: Path, *, vocab_size: int, eos_token_ids: Iterable[int]) -> Vocabulary:
        """Reads tokenizer.json. Where that cannot be, the vocabulary refuses every constraint."""
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
            return cls(None, f"the model's tokenizer.json is not understood: {error}")
        return cls(tokenizer)

    @property
    def problem(self) -> str:
        """Why no constraint can be kept to; empty where they can."""
        return self._problem

    def matcher(self, constraint: OutputConstraint) -> Matcher:
        """A new matcher at its beginning. Raises `InvalidSamplingParams`; may take a second."""
        if self._tokenizer is None:
            raise InvalidSamplingParams(
                f"{constraint.field} cannot be kept to: {self._problem}", field=constraint.field
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
    """The schema as an object: the library takes its options with no other."""
    try:
        schema = json.loads(constraint.text)
    except (ValueError, RecursionError) as error:
        raise invalid_constraint(constraint, f"is no JSON: {error}") from error
    if not isinstance(schema, dict | bool):
        kind = type(schema).__name__
        raise invalid_constraint(constraint, f"must be an object, true or false. Given: {kind}")
    if schema is False:
        raise invalid_constraint(constraint, "allows no value. Given: false")
    return "{}" if schema is True else constraint.text


def _reason(text: str) -> str:
    """The first line of a message, with the line that says what is wrong where that comes later."""
    detail = [line for line in text.splitlines() if line.startswith("error: ")]
    return ": ".join([first_line(text), *(line.removeprefix("error: ") for line in detail[:1])])
