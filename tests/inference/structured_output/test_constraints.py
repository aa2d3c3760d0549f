"""Structured output of a random model, in batches with unconstrained sequences."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from tokenizers import Tokenizer

from inference.engine.engine import Engine
from inference.engine.errors import InvalidSamplingParams
from inference.engine.interface import Finish
from inference.model.loading import EngineOptions, load_engine
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence
from inference.structured_output import masks, vocabulary
from inference.structured_output.compiler import ConstraintCompiler
from inference.structured_output.matcher import Matcher
from inference.structured_output.vocabulary import Compiled, Vocabulary
from mesh.errors import ErrorKind, MeshError
from mesh.protocol.constraints import ConstraintForm, OutputConstraint
from mesh.protocol.finish import FinishReason
from mesh.v1 import common_pb2, inference_pb2_grpc
from tests.inference.client import generate, serving
from tests.inference.spelling import EOS, make_tokenizer, random_schema, save_spelling

NUM_SCHEMAS = 200
TOKENIZER: Tokenizer = make_tokenizer()

EXPRESSION = r"(yes|no), [0-9]{2,4}( [a-f]+){0,2}!"
GRAMMAR = """
start: sum
sum: term ("+" term){0,3}
term: NUMBER | "(" sum ")"
NUMBER: /[0-9]{1,3}/
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random model with a tokenizer."""
    path = tmp_path_factory.mktemp("spelling")
    save_spelling(path)
    return path


@pytest.fixture
def make(folder: Path) -> Callable[..., Engine]:
    """Makes an engine of that model."""

    def load(**options: Any) -> Engine:
        threads = torch.get_num_threads()
        defaults = {
            "dtype": "float32",
            "kv_cache_tokens": 32_768,
            "threads": threads,
            "num_speculative_tokens": 0,
        }
        return load_engine(replace(EngineOptions.defaults(folder, "s"), **{**defaults, **options}))

    return load


def schema_of(value: Any) -> OutputConstraint:
    """A JSON schema as a constraint."""
    return OutputConstraint(ConstraintForm.JSON_SCHEMA, json.dumps(value))


def sequence_of(
    name: str,
    constraint: OutputConstraint | None,
    *,
    resumed: int = 0,
    ids: Any = (5, 6, 7),
    **params: Any,
) -> Sequence:
    """A sequence with its name as the seed."""
    values = {"max_tokens": 1500, "seed": int(name) if name.isdigit() else 0, **params}
    return Sequence(
        name,
        ids,
        SamplingParams(constraint=constraint, **values),
        eos_token_ids=EOS,
        num_resumed_tokens=resumed,
    )


def run(engine: Engine, sequences: list[Sequence]) -> None:
    """Runs all sequences to their end, with at most 20 waiting."""
    waiting = iter(sequences)
    for sequence in waiting:
        engine.add(sequence)
        while engine.load().num_waiting > 20:
            engine.step()
    while engine.has_work:
        engine.step()


def finish_of(sequence: Sequence) -> Finish:
    """The finish of a sequence that has ended."""
    assert sequence.finish is not None
    return sequence.finish


def text_of(sequence: Sequence) -> str:
    """The text of a completion that ended with an end-of-sequence token, without that."""
    assert finish_of(sequence).reason is FinishReason.STOP, sequence
    *ids, last = sequence.token_ids[sequence.num_prompt_tokens :]
    assert last in EOS
    assert not set(ids) & set(EOS)
    return TOKENIZER.decode(ids, skip_special_tokens=False)


def schemas() -> Iterator[dict[str, Any]]:
    """Random JSON schemas, the same in each run."""
    rng = random.Random(42)
    for _ in range(NUM_SCHEMAS):
        yield random_schema(rng)


@pytest.mark.timeout(180)
def test_every_output_matches_its_schema(make: Callable[..., Engine]) -> None:
    """200 schemas, greedy and sampled, in a batch with unconstrained sequences."""
    engine = make()
    given = {str(number): schema for number, schema in enumerate(schemas())}
    sequences = [
        sequence_of(name, schema_of(schema), temperature=1.0 if int(name) % 2 else 0.0)
        for name, schema in given.items()
    ]
    free = [sequence_of(f"free {n}", None, temperature=0.0, max_tokens=40) for n in range(20)]
    mixed = [*sequences]
    for number, sequence in enumerate(free):
        mixed.insert(number * 11, sequence)
    run(engine, mixed)
    for sequence in sequences:
        answer = json.loads(text_of(sequence))
        jsonschema.validate(answer, given[sequence.request_id])
    [alone] = [sequence_of("free", None, temperature=0.0, max_tokens=40)]
    run(make(), [alone])
    assert all(sequence.token_ids == alone.token_ids for sequence in free), "a mask leaked"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_outputs_match_expressions_and_grammars(
    make: Callable[..., Engine], temperature: float
) -> None:
    """The output matches the regular expression, or is a sum by the grammar."""
    engine = make()
    expression = OutputConstraint(ConstraintForm.REGEX, EXPRESSION)
    grammar = OutputConstraint(ConstraintForm.GRAMMAR, GRAMMAR)
    sequences = [
        sequence_of(str(n), (expression, grammar)[n % 2], temperature=temperature, ids=[5, n])
        for n in range(20)
    ]
    # A greedy model may open brackets without end; a bias prevents that.
    [bracket] = TOKENIZER.encode("(").ids
    for number in range(len(sequences)):
        if number % 2 and not temperature:
            sequences[number] = sequence_of(
                str(number), grammar, temperature=0.0, ids=[5, number], logit_bias={bracket: -100.0}
            )
    run(engine, sequences)
    for number, sequence in enumerate(sequences):
        text = text_of(sequence)
        if number % 2:
            assert re.fullmatch(r"[0-9()+]+", text)
            eval(re.sub(r"\b0+(?=\d)", "", text), {"__builtins__": {}})
        else:
            assert re.fullmatch(EXPRESSION, text)


def test_json_object_gives_an_object(make: Callable[..., Engine]) -> None:
    """Without a schema the output is a JSON object with any content."""
    quote, close = (TOKENIZER.encode(text).ids[0] for text in ('"', "}"))
    sequences = [
        sequence_of(
            str(n),
            OutputConstraint(ConstraintForm.JSON_OBJECT),
            logit_bias={quote: 25.0, close: 25.0},
        )
        for n in range(10)
    ]
    run(make(), sequences)
    assert all(isinstance(json.loads(text_of(s), strict=False), dict) for s in sequences)


def test_a_complete_output_ends_the_sequence(make: Callable[..., Engine]) -> None:
    """ignore_eos and min_tokens do not extend a complete output."""
    constraint = OutputConstraint(ConstraintForm.REGEX, "ab?")
    sequence = sequence_of("0", constraint, ignore_eos=True, min_tokens=50)
    run(make(), [sequence])
    assert text_of(sequence) == "ab"


def test_a_truncated_output_is_a_valid_prefix(
    make: Callable[..., Engine],
) -> None:
    """max_tokens ends the sequence with finish reason length."""
    constraint = OutputConstraint(ConstraintForm.REGEX, "(ab){50}")
    sequence = sequence_of("0", constraint, max_tokens=7)
    run(make(), [sequence])
    assert finish_of(sequence).reason is FinishReason.LENGTH
    text = TOKENIZER.decode(list(sequence.token_ids[3:]))
    assert ("ab" * 50).startswith(text)


def test_resumption_and_preemption_do_not_change_the_output(make: Callable[..., Engine]) -> None:
    """The matcher replays another replica's tokens, and survives preemption."""
    constraint = schema_of(random_schema(random.Random(5), depth=3))
    whole = sequence_of("0", constraint)
    run(make(), [whole])
    text_of(whole)
    assert whole.num_completion_tokens > 8
    for resumed in (1, whole.num_completion_tokens // 2, whole.num_completion_tokens - 1):
        again = sequence_of(
            "0",
            constraint,
            ids=whole.token_ids[: whole.num_prompt_tokens + resumed],
            resumed=resumed,
        )
        run(make(), [again])
        assert again.token_ids == whole.token_ids
    expected = [sequence_of(str(n), constraint, ids=[9] * 60) for n in range(6)]
    run(make(), expected)
    tight = [sequence_of(str(n), constraint, ids=[9] * 60) for n in range(6)]
    engine = make(kv_cache_tokens=1600)
    run(engine, tight)
    assert [s.token_ids for s in tight] == [s.token_ids for s in expected]


def test_a_resumed_completion_that_violates_the_constraint_fails(
    make: Callable[..., Engine],
) -> None:
    """The sequence ends with an error; other sequences continue."""
    constraint = OutputConstraint(ConstraintForm.REGEX, "ab")
    ids = [5, 6, 7, *TOKENIZER.encode("x").ids]
    wrong = sequence_of("0", constraint, ids=ids, resumed=1)
    right = sequence_of("1", constraint)
    run(make(), [wrong, right])
    assert isinstance(finish_of(wrong).error, InvalidSamplingParams)
    assert "constraint.regex cannot be followed" in str(finish_of(wrong).error)
    assert text_of(right) == "ab"


@pytest.mark.parametrize(
    ("form", "text", "message"),
    [
        ("json_schema", "{", "json_schema is not valid JSON"),
        ("json_schema", "[1]", "json_schema must be an object, true or false. Given: list"),
        ("json_schema", '{"type": "thing"}', "json_schema is not valid: Invalid type: thing"),
        ("json_schema", "false", "json_schema allows no value"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json_schema", "[" * 90_000, "json_schema is not valid JSON"),
        ("regex", "a+(", "regex is not valid.*unclosed group"),
        ("regex", "(?=a)b", "regex is not valid.*look-ahead"),
        ("regex", "", "regex must have 1 to 1000000 characters, given 0"),
        ("regex", "a" * 1_000_001, "regex must have 1 to 1000000 characters, given 1000001"),
        ("grammar", "start: foo", 'grammar is not valid.*unknown name: "foo"'),
    ],
)
def test_an_invalid_constraint_is_rejected_by_name(
    make: Callable[..., Engine], form: str, text: str, message: str
) -> None:
    """The message names the field and the problem; the engine keeps no state of it."""
    engine = make()
    with pytest.raises(InvalidSamplingParams, match=message) as caught:
        engine.add(sequence_of("0", OutputConstraint(ConstraintForm(form), text)))
    assert caught.value.field == f"constraint.{form}"
    assert not engine.has_work


def test_a_model_without_tokenizer_rejects_constraints(
    make_engine: Callable[..., Engine],
) -> None:
    """The model serves other requests."""
    with pytest.raises(InvalidSamplingParams, match="names no end-of-sequence token"):
        make_engine().add(sequence_of("0", OutputConstraint(ConstraintForm.JSON_OBJECT)))


async def test_constraints_over_grpc(make: Callable[..., Engine], no_tasks_left: None) -> None:
    """Each kind is a field; an invalid one fails before the stream begins."""
    async with serving(make) as served:
        stub = inference_pb2_grpc.InferenceServiceStub(served.channel)

        async def answer(**form: Any) -> str:
            constraint = common_pb2.OutputConstraint(**form)
            ids = await generate(
                stub, constraint=constraint, max_tokens=300, ignore_eos=False, temperature=1.0
            )
            return TOKENIZER.decode([i for i in ids if i not in EOS])

        assert json.loads(await answer(json_schema='{"enum": ["one", [2]]}')) in ("one", [2])
        assert (await answer(json_object=True)).startswith("{")
        assert re.fullmatch("[ab]{3}", await answer(regex="[ab]{3}"))
        assert await answer(grammar='start: "x" "y"') == "xy"
        for form, field in (({"regex": "("}, "constraint.regex"), ({}, "constraint")):
            with pytest.raises(MeshError) as caught:
                await answer(**form)
            assert caught.value.kind is ErrorKind.INVALID_REQUEST
            assert caught.value.param == field


async def test_an_evicted_constraint_is_not_compiled_again(
    make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, no_tasks_left: None
) -> None:
    """Other compilations may evict it before its sequence begins; the loop must not compile."""
    original = ConstraintCompiler.compile

    async def evicted(
        self: ConstraintCompiler, constraint: OutputConstraint, key: str
    ) -> Compiled | None:
        compiled = await original(self, constraint, key)
        self._vocabulary.reject(schema_of(False), InvalidSamplingParams("another"))
        assert list(self._vocabulary._compiled) == [schema_of(False)]
        return compiled

    def grammar(*_: object) -> str:
        raise AssertionError("compiled without limits")

    monkeypatch.setattr(vocabulary, "MAX_KEPT", 1)
    monkeypatch.setattr(ConstraintCompiler, "compile", evicted)
    monkeypatch.setattr(Vocabulary, "grammar", grammar)
    async with serving(make) as served:
        stub = inference_pb2_grpc.InferenceServiceStub(served.channel)
        constraint = common_pb2.OutputConstraint(regex="[ab]{3}")
        ids = await generate(stub, constraint=constraint, max_tokens=9, ignore_eos=False)
        assert re.fullmatch("[ab]{3}", TOKENIZER.decode([i for i in ids if i not in EOS]))


@pytest.mark.parametrize(
    "schema",
    [
        # A key that is declared, and that a pattern matches as well.
        {
            "type": "object",
            "properties": {"x-a": {"type": "string", "maxLength": 3}},
            "patternProperties": {"^x-": {"minLength": 2}, "^y$": {"const": 1}},
            "required": ["x-a", "y"],
            "additionalProperties": False,
            "maxProperties": 2,
        },
        {"type": "integer", "minimum": 2**53 + 1, "maximum": 2**53 + 7},
        {"type": "string", "format": "binary", "maxLength": 3},
    ],
)
def test_outputs_match_schemas_as_people_write_them(
    make: Callable[..., Engine], schema: dict[str, Any]
) -> None:
    """Also those that the library follows in part only."""
    sequences = [sequence_of(str(n), schema_of(schema), temperature=1.0) for n in range(12)]
    run(make(), sequences)
    for sequence in sequences:
        jsonschema.validate(json.loads(text_of(sequence), strict=False), schema)


def test_declared_objects_get_no_other_keys(make: Callable[..., Engine]) -> None:
    """Unless the setting is off."""
    schema = {"type": "object", "properties": {"a": {"type": "null"}}}
    for close, expected in ((True, {"{}", '{"a":null}'}), (False, None)):
        sequences = [
            sequence_of(str(n), schema_of(schema), temperature=1.5, max_tokens=60)
            for n in range(12)
        ]
        run(make(close_objects=close), sequences)
        texts = {
            re.sub(r"\s", "", TOKENIZER.decode(list(s.token_ids[s.num_prompt_tokens :])))
            for s in sequences
        }
        assert (texts <= expected) if expected else (texts - {"{}", '{"a":null}'})


def test_a_slow_mask_ends_only_its_sequence(
    make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other sequences of the batch wait for the limit once, and then continue."""
    monkeypatch.setattr(masks, "MAX_SECONDS", 0.1)
    engine = make()
    slow, *others = sequences = [
        sequence_of(str(n), OutputConstraint(ConstraintForm.REGEX, "[ab]{12}")) for n in range(4)
    ]
    for sequence in sequences:
        engine.add(sequence)
    engine.step()
    assert slow.matcher is not None
    released = threading.Event()

    def busy(*_: object) -> None:
        while not released.is_set():
            sum(range(1000))

    monkeypatch.setattr(slow.matcher.__class__, "fill", _only_for(slow.matcher, busy))
    try:
        while engine.has_work:
            engine.step()
    finally:
        released.set()
    assert isinstance(finish_of(slow).error, InvalidSamplingParams)
    assert "a token's mask takes more than 0.1 s" in str(finish_of(slow).error)
    assert all(len(text_of(sequence)) == 12 for sequence in others)
    assert engine.healthy


def _only_for(matcher: Matcher, replacement: Callable[..., None]) -> Callable[..., None]:
    """A method that is replaced for one object: its class has slots."""
    original = type(matcher).fill

    def fill(self: Matcher, *args: Any) -> None:
        (replacement if self is matcher else original)(self, *args)

    return fill
