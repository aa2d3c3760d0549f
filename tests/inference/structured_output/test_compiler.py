"""Compilation of constraints in a separate process, with limits that end it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from inference.engine.errors import EngineUnavailable, InvalidSamplingParams, SequenceFailed
from inference.structured_output import compile_server
from inference.structured_output import compiler as compiler_module
from inference.structured_output.compiler import CompileLimits, ConstraintCompiler
from inference.structured_output.vocabulary import Vocabulary, VocabularySource
from mesh.protocol.constraints import ConstraintForm, OutputConstraint, SchemaRule
from tests.helpers import eventually
from tests.inference.spelling import EOS, VOCAB_SIZE, make_tokenizer

SLOW = {"type": "integer", "multipleOf": 999983}
"""40 bytes that take 8 s and 400 MB to compile."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> VocabularySource:
    """A folder with a tokenizer."""
    folder = tmp_path_factory.mktemp("vocabulary")
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return VocabularySource(str(folder), VOCAB_SIZE, list(EOS))


@asynccontextmanager
async def compiling(
    source: VocabularySource, **limits: Any
) -> AsyncIterator[tuple[ConstraintCompiler, Vocabulary]]:
    """A compiler and the vocabulary that it fills; closed at the end."""
    vocabulary = Vocabulary.load(source)
    compiler = ConstraintCompiler(vocabulary, CompileLimits(**limits))
    try:
        yield compiler, vocabulary
    finally:
        await compiler.close()


def schema_of(value: Any) -> OutputConstraint:
    """A JSON schema as a constraint."""
    return OutputConstraint(ConstraintForm.JSON_SCHEMA, json.dumps(value))


def nested(depth: int) -> dict[str, Any]:
    """Objects in objects."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def forks(compiler: ConstraintCompiler) -> list[int]:
    """The process ids of the running compilations."""
    assert compiler._server is not None
    parent = compiler._server._process.pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii")
    return [int(each) for each in children.split()]


async def test_limits_end_a_compilation(source: VocabularySource, no_tasks_left: None) -> None:
    """The error names the limit, is kept, and costs no more than the limit."""
    async with compiling(source, max_seconds=0.2) as (compiler, vocabulary):
        began = time.monotonic()
        constraint = schema_of(SLOW)
        await compiler.compile(constraint, "")
        for _ in range(2):
            with pytest.raises(InvalidSamplingParams, match=r"within 0\.2 s of CPU time") as caught:
                vocabulary.matcher(constraint)
            assert caught.value.field == "constraint.json_schema"
            assert vocabulary.kept(constraint) is not None
            await compiler.compile(constraint, "")
        assert time.monotonic() - began < 30
        # The others are not affected.
        await compiler.compile(schema_of({"type": "integer"}), "")
        vocabulary.matcher(schema_of({"type": "integer"}))
    async with compiling(source, max_seconds=20, max_bytes=24 * 2**20) as (compiler, vocabulary):
        await compiler.compile(constraint, "")
        with pytest.raises(InvalidSamplingParams, match="within 24 MiB of memory"):
            vocabulary.matcher(constraint)


async def test_the_schema_that_exceeds_a_limit_is_named(
    source: VocabularySource, no_tasks_left: None
) -> None:
    """Of several tools the one whose schema takes too long alone."""
    schemas = [{"type": "integer"}, {"properties": {"n": SLOW}}, {"type": "string"}]
    rules = tuple(
        SchemaRule(f"r{n}", json.dumps(schema), f"tools[{n}].function.parameters of 't{n}'")
        for n, schema in enumerate(schemas)
    )
    constraint = OutputConstraint(ConstraintForm.GRAMMAR, "start: r0 | r1 | r2", rules)
    async with compiling(source, max_seconds=0.2) as (compiler, vocabulary):
        await compiler.compile(constraint, "")
        with pytest.raises(InvalidSamplingParams) as caught:
            vocabulary.matcher(constraint)
    assert caught.value.field == "tools[1].function.parameters"
    beginning = "tools[1].function.parameters of 't1' must compile within 0.2 s of CPU time"
    assert str(caught.value).startswith(beginning)


async def test_overlapping_options_are_refused_in_the_terms_of_the_schema(
    source: VocabularySource,
) -> None:
    """The library's message names one of its own options."""
    options = {"oneOf": [{"type": "integer"}, {"type": "number"}]}
    async with compiling(source) as (compiler, vocabulary):
        constraint = schema_of({"properties": {"x": options}})
        await compiler.compile(constraint, "")
        message = r"at properties\.x: oneOf must have options of which no value matches two"
        with pytest.raises(InvalidSamplingParams, match=message):
            vocabulary.matcher(constraint)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (schema_of(nested(130)), "nested too deeply: at most 120 levels"),
        (schema_of({"minimum": float("inf")}), "finite numbers"),
        (OutputConstraint(ConstraintForm.REGEX, "(" * 20_000 + ")" * 20_000), "is not valid"),
        (OutputConstraint(ConstraintForm.GRAMMAR, "start: " + "(" * 9000), "is not valid"),
        (
            schema_of({"properties": {"x": {"items": {"type": "thing"}}}}),
            r"is not valid: at properties\.x\.items: Invalid type: thing",
        ),
        (
            OutputConstraint(
                ConstraintForm.GRAMMAR,
                "start: a | b",
                (
                    SchemaRule("a", "{}", "tools[0].function.parameters of 'good'"),
                    SchemaRule(
                        "b",
                        json.dumps({"properties": {"mail": {"pattern": "^(?=.*@)"}}}),
                        "tools[1].function.parameters of 'bad'",
                    ),
                ),
            ),
            r"tools\[1\]\.function\.parameters of 'bad' is not valid: "
            r"at properties\.mail\.pattern: must have no lookahead",
        ),
    ],
)
def test_errors_name_the_schema_and_the_place(
    source: VocabularySource, constraint: OutputConstraint, message: str
) -> None:
    """As the fork sees them; the same constraint is refused again without compiling."""
    outcome = compile_server._outcome(Vocabulary.load(source), constraint)
    with pytest.raises(InvalidSamplingParams, match=message):
        raise InvalidSamplingParams(str(outcome["error"]))
    field = "tools[1].function.parameters" if constraint.schema_rules else constraint.field
    assert outcome["field"] == field


def test_a_slow_mask_is_found_before_the_sequence_runs(
    source: VocabularySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compilation follows a random output."""
    monkeypatch.setattr(compile_server, "MAX_MASK_SECONDS", -1.0)
    outcome = compile_server._outcome(Vocabulary.load(source), schema_of({"type": "string"}))
    assert outcome == {"limit": "mask"}


@pytest.mark.parametrize(
    ("status", "limit", "message"),
    [
        (signal.SIGPROF, "time", "within 0.8 s of CPU time"),
        (signal.SIGABRT, "memory", "within 128 MiB of memory"),
        (signal.SIGSEGV, "depth", "within 4 MiB of stack"),
        (0, "memory", "within 128 MiB of memory"),
    ],
)
def test_the_end_of_a_fork_names_the_limit(
    source: VocabularySource, status: int, limit: str, message: str
) -> None:
    """However it ends, the request is refused and nothing else."""
    assert compile_server._limit(status) == limit
    constraint = schema_of({"type": "string"})
    compiler = ConstraintCompiler(Vocabulary.load(source), CompileLimits())
    error = compiler._error(constraint, {"limit": limit})
    assert str(error) == f"constraint.json_schema must compile {message}, and does not"


async def test_a_killed_compilation_is_no_verdict_on_the_constraint(
    source: VocabularySource, no_tasks_left: None
) -> None:
    """As the kernel kills it if memory runs out: its requests fail, and it is not kept."""
    constraint = schema_of(SLOW)
    async with compiling(source, max_seconds=50) as (compiler, vocabulary):
        requests = [asyncio.create_task(compiler.compile(constraint, "")) for _ in range(2)]
        await eventually(lambda: compiler._server is not None and len(forks(compiler)) == 1, "one")
        os.kill(forks(compiler)[0], signal.SIGKILL)
        for error in await asyncio.gather(*requests, return_exceptions=True):
            assert isinstance(error, SequenceFailed)
        assert vocabulary.kept(constraint) is None
        assert not compiler._compilations


async def test_a_compilation_ends_with_its_requests(
    source: VocabularySource, no_tasks_left: None
) -> None:
    """Requests with the same constraint share it; its fork is killed when the last one leaves."""
    async with compiling(source, max_seconds=50) as (compiler, _):
        requests = [asyncio.create_task(compiler.compile(schema_of(SLOW), "")) for _ in range(3)]
        await eventually(lambda: compiler._server is not None and len(forks(compiler)) == 1, "one")
        requests[0].cancel()
        await asyncio.sleep(0.05)
        assert len(forks(compiler)) == 1
        for request in requests:
            request.cancel()
        await eventually(lambda: not forks(compiler), "no fork is left")
        await asyncio.gather(*requests, return_exceptions=True)
        assert not compiler._compilations


async def test_a_key_does_not_take_every_place(
    source: VocabularySource, no_tasks_left: None
) -> None:
    """Another key's constraint compiles beside many slow ones; so do those of the lost process."""
    async with compiling(source, max_seconds=50) as (compiler, vocabulary):
        slow = [
            asyncio.create_task(
                compiler.compile(schema_of({"multipleOf": 999983, "maximum": number}), "greedy")
            )
            for number in range(6)
        ]
        await eventually(
            lambda: (
                compiler._server is not None
                and len(forks(compiler)) == compiler_module.MAX_FORKS_PER_KEY
            ),
            "the key's places are taken",
        )
        await compiler.compile(schema_of({"type": "null"}), "modest")
        vocabulary.matcher(schema_of({"type": "null"}))
        # Nor do quick constraints of the same key wait for its slow ones.
        await compiler.compile(schema_of({"type": "string"}), "greedy")
        vocabulary.matcher(schema_of({"type": "string"}))
        assert not all(request.done() for request in slow), "the quick ones waited for them"
        for request in slow:
            request.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        assert compiler._server is not None
        os.kill(compiler._server._process.pid, signal.SIGKILL)
        await eventually(lambda: compiler._server.has_ended, "the process has ended")
        await compiler.compile(schema_of({"type": "boolean"}), "modest")
        vocabulary.matcher(schema_of({"type": "boolean"}))


async def test_the_end_of_the_engine_ends_compilations(
    source: VocabularySource, no_tasks_left: None
) -> None:
    """Their requests can be tried at another engine."""
    async with compiling(source, max_seconds=50) as (compiler, _):
        request = asyncio.create_task(compiler.compile(schema_of(SLOW), ""))
        await eventually(lambda: compiler._server is not None and len(forks(compiler)) == 1, "one")
    with pytest.raises(EngineUnavailable):
        await request


async def test_a_hundred_large_tools_compile(source: VocabularySource) -> None:
    """160 kB of schemas that are required together, as with `tool_choice: required`."""
    properties = {f"p{n}": {"type": "string", "description": "x" * 60} for n in range(16)}
    schema = json.dumps({"type": "object", "properties": properties, "required": ["p0"]})
    rules = tuple(SchemaRule(f"rule_{n}", schema, f"tools[{n}]") for n in range(100))
    calls = " | ".join(f'"{rule.name} " {rule.name}' for rule in rules)
    constraint = OutputConstraint(ConstraintForm.GRAMMAR, f"start: {calls}", rules)
    assert constraint.problem is None
    assert sum(len(rule.json_schema) for rule in rules) > 160_000
    async with compiling(source) as (compiler, vocabulary):
        await compiler.compile(constraint, "")
        assert vocabulary.matcher(constraint).error is None
