"""The bytes of each token, read from the model's tokenizer.json, for structured output only.

The engine's inputs and outputs are token ids; it neither encodes nor decodes text. To constrain
an output it needs to know which token ids spell which bytes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from llguidance import LLMatcher, LLTokenizer

from inference.engine.errors import InvalidSamplingParams
from inference.structured_output.grammar import LIMITS, build_grammar, rejected
from inference.structured_output.matcher import Matcher
from mesh.protocol.constraints import OutputConstraint

MAX_KEPT = 256
"""Most compiled constraints in the cache: an application repeats the same few."""

MAX_KEPT_BYTES = 256 * 2**20
"""Most memory of the cache, by estimates."""


class Compiled(NamedTuple):
    """The outcome of compiling a constraint."""

    matcher: LLMatcher | None
    """In its initial state; None if the constraint is rejected."""
    error: InvalidSamplingParams | None
    num_bytes: int


class VocabularySource(NamedTuple):
    """What `Vocabulary.load` reads, for a second process that loads the same."""

    folder: str
    vocab_size: int
    eos_token_ids: list[int]
    close_objects: bool = True
    """Described at `inference.structured_output.schema.adapt_schema`."""


class Vocabulary:
    """Compiles constraints and creates their matchers; caches both outcomes. Thread-safe."""

    def __init__(
        self,
        tokenizer: LLTokenizer | None,
        problem: str = "",
        *,
        source: VocabularySource | None = None,
    ) -> None:
        """`problem` is the reason why `tokenizer` is None; `source` is where it was loaded from."""
        self._tokenizer = tokenizer
        self._problem = problem
        self.source = source
        self._close_objects = source is None or source.close_objects
        self._compiled: OrderedDict[OutputConstraint, Compiled] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    @classmethod
    def load(cls, source: VocabularySource) -> Vocabulary:
        """Reads tokenizer.json; if that fails, the vocabulary rejects every constraint."""
        path = Path(source.folder) / "tokenizer.json"
        if not source.eos_token_ids:
            return cls(None, "the model names no end-of-sequence token")
        if not path.is_file():
            return cls(None, "the model's folder has no tokenizer.json")
        try:
            text = path.read_text(encoding="utf-8")
            tokenizer = LLTokenizer(text, n_vocab=source.vocab_size, eos_token=source.eos_token_ids)
        except (ValueError, OSError) as error:
            return cls(None, f"the model's tokenizer.json cannot be parsed: {error}")
        return cls(tokenizer, source=source)

    @property
    def problem(self) -> str:
        """Why constraints are not supported; empty if they are."""
        return self._problem

    def kept(self, constraint: OutputConstraint) -> Compiled | None:
        """The outcome for a constraint in the cache, None if there is none.

        Raises `InvalidSamplingParams` if constraints are not supported.
        """
        if self._tokenizer is None:
            raise InvalidSamplingParams(
                f"{constraint.field} is not supported: {self._problem}", field=constraint.field
            )
        with self._lock:
            compiled = self._compiled.get(constraint)
            if compiled is not None:
                self._compiled.move_to_end(constraint)
        return compiled

    def matcher(self, constraint: OutputConstraint) -> Matcher:
        """A matcher in its initial state; compiles the constraint, without limits, if need be.

        Raises `InvalidSamplingParams` if the constraint is invalid or not supported.
        """
        compiled = self.kept(constraint)
        if compiled is None:
            try:
                compiled = self.compile(constraint, self.grammar(constraint))
            except InvalidSamplingParams as error:
                compiled = self.reject(constraint, error)
        return self.new_matcher(constraint, compiled)

    @staticmethod
    def new_matcher(constraint: OutputConstraint, compiled: Compiled) -> Matcher:
        """A matcher of a compiled constraint. Raises the error of a rejected one."""
        if compiled.error is not None:
            raise InvalidSamplingParams(str(compiled.error), field=compiled.error.field)
        assert compiled.matcher is not None, "neither a matcher nor an error"
        return Matcher(compiled.matcher.deep_copy(), constraint)

    def grammar(self, constraint: OutputConstraint) -> str:
        """The library's form of a constraint. Raises `InvalidSamplingParams`."""
        return build_grammar(constraint, close_objects=self._close_objects)

    def compile(
        self, constraint: OutputConstraint, grammar: str, num_bytes: int | None = None
    ) -> Compiled:
        """Compiles the grammar of a constraint and adds it to the cache.

        `num_bytes` is the memory that this takes; None estimates it. Raises
        `InvalidSamplingParams` if the library rejects the grammar.
        """
        assert self._tokenizer is not None, "constraints are not supported"
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            message = matcher.get_error()
            raise rejected(constraint, message, close_objects=self._close_objects)
        size = num_bytes if num_bytes is not None else 10 * len(grammar)
        return self._keep(constraint, Compiled(matcher, None, size))

    def reject(self, constraint: OutputConstraint, error: InvalidSamplingParams) -> Compiled:
        """Adds the error of a constraint to the cache."""
        size = len(constraint.text) + sum(len(rule.json_schema) for rule in constraint.schema_rules)
        return self._keep(constraint, Compiled(None, error, size))

    def _keep(self, constraint: OutputConstraint, compiled: Compiled) -> Compiled:
        with self._lock:
            replaced = self._compiled.pop(constraint, None)
            self._num_bytes += compiled.num_bytes - (replaced.num_bytes if replaced else 0)
            self._compiled[constraint] = compiled
            # The newest one stays: its request is about to use it.
            while len(self._compiled) > 1 and (
                len(self._compiled) > MAX_KEPT or self._num_bytes > MAX_KEPT_BYTES
            ):
                self._num_bytes -= self._compiled.popitem(last=False)[1].num_bytes
        return compiled
