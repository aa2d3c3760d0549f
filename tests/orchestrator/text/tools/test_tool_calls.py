"""Tool calls are parsed out of text, for any split of it."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from orchestrator.text.tools.formats import (
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    GLM,
    GRANITE,
    HERMES,
    LLAMA3,
    MISTRAL,
    MISTRAL_ARGS,
    MISTRAL_CALL_ID,
    MISTRAL_THINK,
    PHI4_MINI,
    PYTHONIC,
    QWEN3_CODER,
    THINK,
    TOOL_FORMATS,
    answer_format,
)
from orchestrator.text.tools.tool_calls import ToolCallParser
from orchestrator.text.tools.tool_format import ToolFormat
from tests.tokenizer.templates import CHATML, PLAIN
from tests.tokenizer.templates import LLAMA3 as LLAMA3_TEMPLATE
from tests.tokenizer.templates import MISTRAL as MISTRAL_TEMPLATE

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "q": {"type": "string"},
        "days": {"type": "array"},
        "n": {"type": ["integer", "null"]},
        "x": {"anyOf": [{"type": "number"}, {"type": "string"}]},
        "on": {"type": "boolean"},
    },
}
NAMES = {"weather": PARAMETERS, "f": PARAMETERS}
ROME: dict[str, Any] = {"city": 'R"o{m}e \\ 🏛', "days": [1, {"a": None}]}
ROME_JSON = json.dumps(ROME, ensure_ascii=False)
NASTY = '{"q": "</tool_call> [TOOL_CALLS] <tool_call>{\\"name\\": \\"f\\"}"}'

Calls = list[tuple[str, str]]


def read(
    format: ToolFormat, pieces: Iterable[str], *, single: bool = False, forced: bool = False
) -> tuple[str, Calls, list[str]]:
    """The text, the calls and their ids. Asserts that id and name come once, before arguments."""
    parser = ToolCallParser(format, NAMES, single=single, forced=forced)
    parsed = [parser.push(piece) for piece in pieces]
    parsed.append(parser.flush())
    calls: list[tuple[str, str]] = []
    ids: list[str] = []
    for delta in (call for each in parsed for call in each.calls):
        if delta.name:
            assert delta.id
            assert delta.number == len(calls)
            ids.append(delta.id)
            calls.append((delta.name, ""))
        name, arguments = calls[delta.number]
        calls[delta.number] = (name, arguments + delta.arguments)
    return "".join(each.text for each in parsed), calls, ids


def cuts(text: str) -> Iterable[Sequence[str]]:
    """The text as a whole, by character, cut in two at every position, and cut at random."""
    yield [text]
    yield list(text)
    for at in range(1, len(text)):
        yield [text[:at], text[at:]]
    rng = random.Random(text)
    for _ in range(20):
        places = sorted(rng.sample(range(len(text) + 1), min(4, len(text))))
        yield [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


CASES: list[tuple[ToolFormat, str, str, Calls]] = [
    (HERMES, "Just text {}, <tool", "Just text {}, <tool", []),
    (HERMES, " \n spaces \n", " \n spaces \n", []),
    (
        HERMES,
        f'Let me see.\n<tool_call>\n{{"name": "weather", "arguments": {ROME_JSON}}}\n</tool_call>',
        "Let me see.",
        [("weather", ROME_JSON)],
    ),
    (
        HERMES,
        f'<tool_call>{{"arguments": {NASTY}, "name": "f"}}</tool_call>\n'
        '<tool_call>\n{"name": "f"}\n</tool_call>',
        "",
        [("f", NASTY), ("f", "{}")],
    ),
    (HERMES, "<tool_call>none</tool_call>", "<tool_call>none</tool_call>", []),
    (
        HERMES,
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        [],
    ),
    (HERMES, '<tool_call>\n{"name": "f", "argu', "", [("f", "")]),
    (HERMES, '<tool_call>\n{"na', '<tool_call>\n{"na', []),
    (
        HERMES,
        '<tool_call>{"name":"f","arguments":"{\\"a\\":1}"}</tool_call>',
        "",
        [("f", '{"a":1}')],
    ),
    (HERMES, '<tool_call>{"name":"f","arguments":null}</tool_call>', "", [("f", "{}")]),
    (LLAMA3, f'{{"name": "weather", "parameters": {ROME_JSON}}}', "", [("weather", ROME_JSON)]),
    (
        LLAMA3,
        '<|python_tag|>{"type": "function", "name": "f", "parameters": {}}; '
        '{"name": "weather", "parameters": {"city": "x"}}',
        "",
        [("f", "{}"), ("weather", '{"city": "x"}')],
    ),
    (LLAMA3, '{"answer": 42}', '{"answer": 42}', []),
    (LLAMA3, '  {"name": "Bob", "parameters": 3}', '  {"name": "Bob", "parameters": 3}', []),
    (LLAMA3, 'It is {"name": "f"}.', 'It is {"name": "f"}.', []),
    (LLAMA3, "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    (
        MISTRAL,
        f'[TOOL_CALLS] [{{"name": "weather", "arguments": {ROME_JSON}}}, '
        f'{{"name": "f", "arguments": {NASTY}, "id": "123456789"}}]',
        "",
        [("weather", ROME_JSON), ("f", NASTY)],
    ),
    (MISTRAL, 'Ok[TOOL_CALLS]{"name": "f", "arguments": {}}', "Ok", [("f", "{}")]),
    (
        GRANITE,
        f'Ok <|tool_call|>[{{"name": "weather", "arguments": {ROME_JSON}}}, '
        f'{{"name": "f", "arguments": {NASTY}}}]',
        "Ok",
        [("weather", ROME_JSON), ("f", NASTY)],
    ),
    (PHI4_MINI, 'functools[{"name": "f", "arguments": {"a": [1]}}]', "", [("f", '{"a": [1]}')]),
    (PHI4_MINI, "Use functools [here].", "Use functools [here].", []),
    (MISTRAL, "[TOOL] [1] is text", "[TOOL] [1] is text", []),
    (MISTRAL, f"Ok [TOOL_CALLS]weather[ARGS]{ROME_JSON}", "Ok", [("weather", ROME_JSON)]),
    (
        MISTRAL_ARGS,
        f'[TOOL_CALLS]weather[ARGS]{ROME_JSON}[TOOL_CALLS]f[ARGS] {{"q": ["[TOOL_CALLS]"]}}\n',
        "",
        [("weather", ROME_JSON), ("f", '{"q": ["[TOOL_CALLS]"]}')],
    ),
    (MISTRAL_CALL_ID, "[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{}", "", [("f", "{}")]),
    (MISTRAL_ARGS, '[TOOL_CALLS] f {"a": [1, 2]}', "", [("f", '{"a": [1, 2]}')]),
    (MISTRAL_ARGS, '[TOOL_CALLS][{"name": "f", "arguments": {}}]', "", [("f", "{}")]),
    (MISTRAL_ARGS, "[TOOL_CALLS]g[ARGS]{}", "[TOOL_CALLS]g[ARGS]{}", []),
    (MISTRAL_ARGS, "[TOOL_CALLS]f [1] or so", "[TOOL_CALLS]f [1] or so", []),
    (MISTRAL_ARGS, "[TOOL_CALLS]f", "[TOOL_CALLS]f", []),
]

F = '<tool_call>{"name": "f", "arguments": '
G = '[TOOL_CALLS][{"name": "f", "arguments": '
X = '{"a": "x}}"}'
TAGS = '"</tool_call>\\n<tool_call>{\\"name\\": \\"f\\"}</tool_call>\\\\"'
FORMATS = (HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, MISTRAL_CALL_ID)
C = "<tool_call>\n<function="
P = "<parameter="
QWEN_ROME = (
    f'{C}weather>\n{P}city>\nR"o{{m}}e \\ 🏛\n</parameter>\n{P}days>\n[1, {{"a": null}}]\n'
    "</parameter>\n</function>\n</tool_call>"
)
GLM_ROME = (
    '<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>R"o{m}e \\ 🏛</arg_value>\n'
    '<arg_key>days</arg_key>\n<arg_value>[1, {"a": null}]</arg_value>\n</tool_call>'
)
DS = "<｜tool▁calls▁begin｜>"
DS_CALL, DS_SEP, DS_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
DS_CLOSE = "<｜tool▁calls▁end｜>"
OTHERS: list[tuple[ToolFormat, str, str, Calls]] = [
    (QWEN3_CODER, f"Let me see.\n{QWEN_ROME}", "Let me see.", [("weather", ROME_JSON)]),
    (QWEN3_CODER, f"{QWEN_ROME}\n{QWEN_ROME}\nSo.", "\nSo.", [("weather", ROME_JSON)] * 2),
    (
        QWEN3_CODER,
        f"{C}f>{P}q>a\nb\n\n</parameter>{P}n>null</parameter>{P}x>1e3</parameter>{P}on>True"
        "</parameter></function></tool_call>",
        "",
        [("f", '{"q": "a\\nb\\n", "n": null, "x": 1000.0, "on": true}')],
    ),
    (
        QWEN3_CODER,
        f"{C}f>\n{P}x>\nmany\n</parameter>\n{P}n>\nsome\n</parameter>\n{P}z>\n[1]\n</parameter>\n"
        "</function>\n</tool_call>",
        "",
        [("f", '{"x": "many", "n": "some", "z": [1]}')],
    ),
    (QWEN3_CODER, f"{C}f>\n</function>\n</tool_call>", "", [("f", "{}")]),
    (QWEN3_CODER, f"{C}f>{P}q>a</tool_call> b", " b", [("f", '{"q": "a"}')]),
    (
        QWEN3_CODER,
        f"{C}f>{P}q><b> </par </parameter></function></tool_call>",
        "",
        [("f", '{"q": "<b> </par "}')],
    ),
    (QWEN3_CODER, f"{C}f>{P}q>\nab\n", "", [("f", '{"q": "ab\\n')]),
    (QWEN3_CODER, f"{C}f>junk {P}q>a</parameter></function></tool_call>b", "b", [("f", "{}")]),
    (QWEN3_CODER, f"{C}g>\n</function>\n</tool_call>", f"{C}g>\n</function>\n</tool_call>", []),
    (QWEN3_CODER, "<tool_call>f</tool_call>", "<tool_call>f</tool_call>", []),
    (QWEN3_CODER, f"{C}f", f"{C}f", []),
    (GLM, f"Ok.{GLM_ROME}", "Ok.", [("weather", ROME_JSON)]),
    (GLM, f"{GLM_ROME}\n{GLM_ROME}", "", [("weather", ROME_JSON)] * 2),
    (GLM, "<tool_call>f</tool_call>", "", [("f", "{}")]),
    (
        GLM,
        "<tool_call>f<arg_key>q</arg_key><arg_value>\n1\n</arg_value></tool_call>",
        "",
        [("f", '{"q": "\\n1\\n"}')],
    ),
    (GLM, "<tool_call>fg</tool_call>", "<tool_call>fg</tool_call>", []),
    (GLM, "<tool_call>f<arg_key>q</arg_key>x</tool_call>", "", [("f", "{}")]),
    (
        PYTHONIC,
        "[weather(city='R\"o{m}e \\\\ 🏛', days=[1, {'a': None}]), f()]",
        "",
        [("weather", ROME_JSON), ("f", "{}")],
    ),
    (
        PYTHONIC,
        '<|python_start|>[f(q="it\'s, (so)", on=true, n=None, x=-1.5)]<|python_end|>',
        "",
        [("f", '{"q": "it\'s, (so)", "on": true, "n": null, "x": -1.5}')],
    ),
    (PYTHONIC, "[f(q={1, 2})] and f()", "and f()", [("f", '{"q": "{1, 2}"}')]),
    (PYTHONIC, "[1, 2]", "[1, 2]", []),
    (PYTHONIC, "[a link](http://x)", "[a link](http://x)", []),
    (PYTHONIC, "[f('Rome')]", "[f('Rome')]", []),
    (PYTHONIC, "[f(q='Ro", "", [("f", "")]),
    (PYTHONIC, "Let me see: [f()]", "Let me see: [f()]", []),
    (
        DEEPSEEK_V3,
        f"Ok.{DS}{DS_CALL}function{DS_SEP}weather\n```json\n{ROME_JSON}\n```{DS_END}\n"
        f"{DS_CALL}function{DS_SEP}f\n```json\n{NASTY}\n```{DS_END}{DS_CLOSE}",
        "Ok.",
        [("weather", ROME_JSON), ("f", NASTY)],
    ),
    (
        DEEPSEEK_V31,
        f"{DS}{DS_CALL}weather{DS_SEP}{ROME_JSON}{DS_END}{DS_CALL}f{DS_SEP}{{}}{DS_END}{DS_CLOSE}So",
        "So",
        [("weather", ROME_JSON), ("f", "{}")],
    ),
    (DEEPSEEK_V31, f'{DS}{DS_CALL}f{DS_SEP}{{"a": 1{DS_END}', "", [("f", '{"a": 1}')]),
    (
        DEEPSEEK_V31,
        f"{DS}{DS_CALL}g{DS_SEP}{{}}",
        f"{DS}{DS_CALL}g{DS_SEP}{{}}",
        [],
    ),
    (DEEPSEEK_V3, "<｜tool▁calls", "<｜tool▁calls", []),
]
INTERRUPTED: list[tuple[ToolFormat, str, str, Calls]] = [
    (
        format,
        f'{format.start}{{"name":"f","arguments":{{"a":"x}}}}{format.end}\n'
        f'{format.start}{{"name":"weather","arguments":{{}}}}{format.end}',
        "",
        [("f", '{"a":"x}}"}'), ("weather", "{}")],
    )
    for format in FORMATS
    if format.end
]
BROKEN: list[tuple[ToolFormat, str, str, Calls]] = [
    # A missing brace of the call, of its arguments, and of a value inside.
    (HERMES, F + '{"a": 1}</tool_call>', "", [("f", '{"a": 1}')]),
    (HERMES, F + '{"a": 1\n</tool_call> Then.', " Then.", [("f", '{"a": 1\n}')]),
    (HERMES, F + '{"a": [{"b": 2}}</tool_call>', "", [("f", '{"a": [{"b": 2}]}')]),
    (HERMES, F + '{"a": 1}\n' + F + '{"b": 2}}', "", [("f", '{"a": 1}'), ("f", '{"b": 2}')]),
    (HERMES, F + "3</tool_call>", "", [("f", "3")]),
    (MISTRAL, G + '{"a": 1}, {"name": "f"}]', "", [("f", '{"a": 1}'), ("f", "{}")]),
    (MISTRAL, G + '{"a": [1, 2}}]', "", [("f", '{"a": [1, 2]}')]),
    (
        MISTRAL,
        '[TOOL_CALLS]f[ARGS]{"a": 1[TOOL_CALLS]f[ARGS]{"b": 2}',
        "",
        [("f", '{"a": 1}'), ("f", '{"b": 2}')],
    ),
    (
        LLAMA3,
        '{"name": "f", "parameters": {"a": 1}; {"name": "f", "parameters": {"b": 2}}',
        "",
        [("f", '{"a": 1}'), ("f", '{"b": 2}')],
    ),
    # Surplus brackets.
    (HERMES, F + '{"a": 1}}}\n</tool_call>', "", [("f", '{"a": 1}')]),
    (HERMES, F + '{"a": 1]}} } ]</tool_call>So.', "So.", [("f", '{"a": 1}')]),
    (MISTRAL, G + '{"a": 1}}}, {"name": "f"}]', "", [("f", '{"a": 1}'), ("f", "{}")]),
    (MISTRAL, '[TOOL_CALLS]f[ARGS]{"a": 1}}', "", [("f", '{"a": 1}')]),
    (LLAMA3, '{"name": "f", "parameters": {"a": 1}}}', "", [("f", '{"a": 1}')]),
    # Keys besides the known ones.
    (
        HERMES,
        '<tool_call>{"why": [1], "name": "f", "arguments": {}}</tool_call>',
        "",
        [("f", "{}")],
    ),
    (HERMES, F + '{"a": 1}, "why": "x"}</tool_call>', "", [("f", '{"a": 1}')]),
    (
        HERMES,
        '<tool_call>{"name": "f", "city": "Rome", "n": 2}</tool_call>',
        "",
        [("f", '{"city": "Rome", "n": 2}')],
    ),
    (LLAMA3, '{"name": "f", "why": 1, "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
    (LLAMA3, '{"name": "f", "age": 3} years', '{"name": "f", "age": 3} years', []),
    (LLAMA3, '{"age": 3, "name": "f"}', '{"age": 3, "name": "f"}', []),
    (
        HERMES,
        F + '{"a": 1}, "parameters": {"b": 2}, "name": "weather"}</tool_call>',
        "",
        [("f", '{"a": 1}')],
    ),
    # Other things than JSON.
    (HERMES, F + '{"a": 1}, or so: ]</tool_call>\nText', "\nText", [("f", '{"a": 1}')]),
    (HERMES, F + '{"a": 1}} and more</tool_call>', "", [("f", '{"a": 1}')]),
    (HERMES, F + '{"a": 1}}\nand no end', "and no end", [("f", '{"a": 1}')]),
    (HERMES, F + "{'a': 1}}</tool_call>", "", [("f", "{'a': 1}")]),
    (HERMES, F + "None}</tool_call>", "", [("f", "{}")]),
    (HERMES, '<tool_call>{"name": "f",}</tool_call>', "", [("f", "{}")]),
    (HERMES, '<tool_call>{"name": f}</tool_call>', '<tool_call>{"name": f}</tool_call>', []),
    (HERMES, '<tool_call>{"name": "f</tool_call>', '<tool_call>{"name": "f</tool_call>', []),
    # A string without its quote ends at the end marker; one that is complete contains it.
    (HERMES, F + '{"a": "</tool_call>', "", [("f", '{"a": ""}')]),
    *INTERRUPTED,
    (HERMES, (F + '{"a": "x}}</tool_call>') * 2, "", [("f", X)] * 2),
    (HERMES, F + '{"a": "x}}</tool_call> He said "yes".', ' He said "yes".', [("f", X)]),
    (HERMES, F + '{"a": "x}}</tool_call> of </tool_call>', " of </tool_call>", [("f", X)]),
    (HERMES, F + '{"a": "x\\</tool_call>', "", [("f", '{"a": "x\\\\"}')]),
    (HERMES, F + '{"a": ["x</tool_call>', "", [("f", '{"a": ["x"]}')]),
    (HERMES, F + '{"a": 1, "b</tool_call>\nSo.', "\nSo.", [("f", '{"a": 1, "b"}')]),
    (HERMES, F + '"{\\"a\\": 1}</tool_call>', "", [("f", '{"a": 1}')]),
    (HERMES, F + '{"a": "x</tool_', "", [("f", '{"a": "x</tool_')]),
    (HERMES, F + f'{{"a": {TAGS}, "b": {TAGS} }}}}', "", [("f", f'{{"a": {TAGS}, "b": {TAGS} }}')]),
    (HERMES, F + f"[{{ {TAGS} : {TAGS}\n}}]}}", "", [("f", f"[{{ {TAGS} : {TAGS}\n}}]")]),
    (HERMES, F + f'{{"a": {TAGS}', "", [("f", f'{{"a": {TAGS}')]),
    (
        HERMES,
        '<tool_call>{"name": "f", "city": "Rome</tool_call>',
        "",
        [("f", '{"city": "Rome"}')],
    ),
    (HERMES, '<tool_call>{"name": "f", "argum</tool_call>' + F + "{}}", "", [("f", "{}")] * 2),
    (
        HERMES,
        '<tool_call>{"arguments": {"a": "x}}</tool_call>\n' + F + "{}}</tool_call>",
        '<tool_call>{"arguments": {"a": "x}}</tool_call>',
        [("f", "{}")],
    ),
    (
        HERMES,
        '<tool_call>{"name": "f</tool_call>\n' + F + "{}}</tool_call>",
        '<tool_call>{"name": "f</tool_call>',
        [("f", "{}")],
    ),
    (HERMES, F + '{"a": 1}}</tool_', "", [("f", '{"a": 1}')]),
    (HERMES, "<tool_call><tool_call>{}", "<tool_call><tool_call>{}", []),
    (
        HERMES,
        '<tool_call>{"arguments": {"a": 1}</tool_call>',
        '<tool_call>{"arguments": {"a": 1}</tool_call>',
        [],
    ),
]


@pytest.mark.parametrize(("format", "text", "shown", "calls"), CASES + BROKEN + OTHERS)
def test_calls_are_separated_from_text(
    format: ToolFormat, text: str, shown: str, calls: Calls
) -> None:
    """Cut at any position the result is the same, also of broken calls."""
    for pieces in cuts(text):
        assert read(format, pieces)[:2] == (shown, calls), pieces


JSON = [HERMES, LLAMA3, MISTRAL, MISTRAL_CALL_ID, GRANITE, PHI4_MINI]


@pytest.mark.parametrize("format", JSON, ids=lambda f: f.name)
def test_the_result_does_not_depend_on_the_cuts(format: ToolFormat) -> None:
    """For a thousand answers put together at random from the parts of calls."""
    parts = ['{"name": "f"', ', "arguments": ', '"parameters": ', "{", "}", "[", "]", ",", ";"]
    parts += ['"a": ', "1", '"x"', '"', " ", "text", "f", "g", "[ARGS]", "[CALL_ID]", "\\"]
    parts += [each for each in (format.start, format.end, format.start[:4]) if each] * 2
    rng = random.Random(format.name)
    for _ in range(1000):
        text = format.start * rng.randrange(2) + "".join(rng.choices(parts, k=rng.randrange(12)))
        whole = read(format, [text])[:2]
        assert read(format, list(text))[:2] == whole, text
        at = rng.randrange(len(text) + 1)
        assert read(format, [text[:at], text[at:]])[:2] == whole, text


PARTS = {
    "qwen3-coder": "<function=f> <function=f>\n <parameter=q> <parameter=n> \n </parameter> "
    "</function> <parameter= > <",
    "glm": "f \n <arg_key> q </arg_key> <arg_value> </arg_value> n < >",
    "pythonic": "[ f( weather( q= n= , ) ] ' \" [ { } 1 \\ ,  (",
    "deepseek-v3": 'function <｜tool▁sep｜> f \n```json\n { } ``` " <｜ ▁',
    "deepseek-v3.1": '<｜tool▁sep｜> f { } ``` " <｜ ▁ [',
}


@pytest.mark.parametrize("name", PARTS)
def test_the_result_of_the_other_notations_does_not_depend_on_the_cuts(name: str) -> None:
    """For hundreds of answers put together at random from the parts of calls."""
    format = TOOL_FORMATS[name]
    parts = [*PARTS[name].split(" "), "1", "x y", " "]
    parts += [each for each in (format.start, format.end, format.again, format.close) if each] * 2
    rng = random.Random(name)
    num_calls = 0
    for _ in range(600):
        begin = format.start * rng.randrange(2) + rng.choice(["", "<function=f>", "[f(", "f{"])
        text = begin + "".join(rng.choices(parts, k=rng.randrange(14)))
        whole = read(format, [text])[:2]
        num_calls += len(whole[1])
        assert read(format, list(text))[:2] == whole, text
        places = sorted(rng.sample(range(len(text) + 1), min(3, len(text))))
        pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
        assert read(format, pieces)[:2] == whole, pieces
    assert num_calls > 5


@pytest.mark.parametrize("format", TOOL_FORMATS.values(), ids=lambda f: f.name)
def test_every_format_has_samples(format: ToolFormat) -> None:
    """The registry has no format whose calls no test cuts at every position."""
    sampled = {each.name for each, *_ in CASES + OTHERS} | {"harmony"}
    assert format.name in sampled


def test_arguments_stream_as_they_are_written() -> None:
    """The name comes first, then each part of the arguments without delay."""
    parser = ToolCallParser(HERMES, NAMES)
    assert parser.push('<tool_call>{"name": "f"').calls[0].name == "f"
    assert parser.push(', "arguments": {"a"').calls[0].arguments == '{"a"'
    assert parser.push(": 1").calls[0].arguments == ": 1"
    assert parser.push("}").calls[0].arguments == "}"
    assert parser.push("}</tool_call>").calls == ()


def test_text_streams_as_it_is_written() -> None:
    """Only white space and what may become a marker is held back."""
    parser = ToolCallParser(HERMES, NAMES)
    assert parser.push("Hello ").text == "Hello"
    assert parser.push("world <").text == " world"
    assert parser.push("b>").text == " <b>"
    plain = ToolCallParser(LLAMA3, NAMES)
    assert plain.push('{"answer"').text == '{"answer"'
    assert plain.push(": 42}").text == ": 42}"


FORCED: list[tuple[ToolFormat, str]] = [
    (HERMES, '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'),
    (LLAMA3, '{"name": "f", "parameters": {"x": 1}}'),
    (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}]'),
    (GRANITE, '<|tool_call|>[{"name": "f", "arguments": {"x": 1}}]'),
    (PHI4_MINI, 'functools[{"name": "f", "arguments": {"x": 1}}]'),
    (MISTRAL_ARGS, '[TOOL_CALLS]f[ARGS]{"x": 1}'),
    (MISTRAL_CALL_ID, '[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{"x": 1}'),
]


@pytest.mark.parametrize(("format", "answer"), FORCED)
def test_a_forced_call_that_is_cut_off_leaves_no_text(format: ToolFormat, answer: str) -> None:
    """Wherever max_tokens or a stop string ends it; without the force a beginning stays text."""
    for end in range(len(answer) + 1):
        for pieces in cuts(answer[:end]):
            text, calls, _ = read(format, pieces, forced=True)
            assert text == ""
            assert [name for name, _ in calls] in ([], ["f"])
    assert read(format, [answer], forced=True)[:2] == read(format, [answer])[:2]
    assert read(format, [answer[:5]])[0] == answer[:5]


def test_ids_match_the_template() -> None:
    """Mistral's templates require nine letters or digits."""
    mistral = '[TOOL_CALLS][{"name": "f"}, {"name": "f"}]'
    _, calls, ids = read(MISTRAL, [mistral])
    assert calls == [("f", "{}")] * 2
    assert len(set(ids)) == 2
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", each) for each in ids)
    [other] = read(LLAMA3, ['{"name": "f"}'])[2]
    assert re.fullmatch("call_[a-zA-Z0-9]{24}", other)


def test_single_returns_only_the_first_call() -> None:
    """Further calls are dropped."""
    text = '<tool_call>{"name": "f"}</tool_call>\n<tool_call>{"name": "weather"}</tool_call>'
    assert read(HERMES, [text], single=True)[:2] == ("", [("f", "{}")])


def test_formats_are_recognized_by_templates() -> None:
    """Each model family has one; a template without tools has none."""
    assert answer_format([CHATML]).tools is HERMES
    assert answer_format([CHATML]).reasoning is THINK
    assert answer_format([LLAMA3_TEMPLATE]).tools is LLAMA3
    assert answer_format(["", MISTRAL_TEMPLATE]).tools is MISTRAL
    newer = "{{- '[TOOL_CALLS]' + call.name + '[ARGS]' + call.arguments|tojson }}"
    assert answer_format([newer]).tools is MISTRAL_ARGS
    assert {"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"} <= answer_format([newer]).markers
    assert answer_format([newer.replace("[ARGS]", "[CALL_ID]")]).tools is MISTRAL_CALL_ID
    assert answer_format(["{{ '<|tool_call|>' + calls | tojson }}"]).tools is GRANITE
    assert answer_format(["{{ '<|tool|>' + tools | tojson + '<|/tool|>' }}"]).tools is PHI4_MINI
    assert answer_format([PLAIN]).tools is None
    assert answer_format([]) == answer_format([PLAIN])
    assert answer_format([LLAMA3_TEMPLATE]).reasoning is None


def test_long_arguments_take_linear_time() -> None:
    """A megabyte of arguments, in small pieces, is parsed within seconds."""
    arguments = json.dumps({"text": "x" * 300_000})
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
    pieces = [text[at : at + 7] for at in range(0, len(text), 7)]
    assert read(HERMES, pieces)[1] == [("f", arguments)]


def test_a_long_string_with_the_end_marker_takes_linear_time() -> None:
    """Whether its quote is missing is searched once, not again for each piece or marker."""
    arguments = json.dumps({"text": "</tool_call>" + '<"' * 50_000 + "</tool_call>" * 10_000})
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
    pieces = [text[at : at + 7] for at in range(0, len(text), 7)]
    assert read(HERMES, pieces)[1] == [("f", arguments)]
    interrupted = '<tool_call>{"name": "f", "arguments": {"a": "x</tool_call>' * 2_000
    assert read(HERMES, [interrupted])[1] == [("f", '{"a": "x"}')] * 2_000
    assert answer_format(["{{ '<tool_call>' }}<function=x>"]).tools is QWEN3_CODER
    assert answer_format(["{{ '<tool_call>' }}<arg_key>"]).tools is GLM
    assert answer_format(["<｜tool▁calls▁begin｜>```json"]).tools is DEEPSEEK_V3
    assert answer_format(["<｜tool▁calls▁begin｜>"]).tools is DEEPSEEK_V31
    assert answer_format(["[func_name1(params_name1=params_value1)]"]).tools is PYTHONIC
    assert answer_format(["<|channel|>analysis"]).is_harmony
    assert answer_format(["[THINK] [/THINK]"]).reasoning is MISTRAL_THINK


@pytest.mark.parametrize(
    ("format", "answer"),
    [
        (HERMES, '<tool_call>{"name": "f", "arguments": {}} no end' + 200_000 * ","),
        (LLAMA3, '{"name": "f", "parameters": {}}' + 200_000 * ","),
        (PYTHONIC, "[f(n=1)" + 200_000 * ","),
    ],
    ids=["hermes", "llama3", "pythonic"],
)
def test_text_after_a_broken_call_takes_linear_time(format: ToolFormat, answer: str) -> None:
    """Each piece is searched once, though what follows is held until its end."""
    pieces = [answer[at : at + 4] for at in range(0, len(answer), 4)]
    began = time.process_time()
    text, calls, _ = read(format, pieces)
    assert time.process_time() - began < 5
    assert len(calls) == 1
    assert text.endswith("," * 100_000)
    assert read(format, [answer])[:2] == (text, calls)


@pytest.mark.parametrize(
    ("format", "answer", "arguments"),
    [
        (HERMES, r'<tool_call>{"name": "f", "arguments": "\ud800"}</tool_call>', r"\ud800"),
        (HERMES, r'<tool_call>{"name": "f", "\udfff": 1}</tool_call>', r'{"\udfff": 1}'),
        (PYTHONIC, r"""[f(x='\ud83d \ud83d\ude00')]""", '{"x": "\\ud83d \\ud83d\\ude00"}'),
        (
            QWEN3_CODER,
            r'<tool_call><function=f><parameter=x>"\udc00"</parameter></function></tool_call>',
            r'{"x": "\udc00"}',
        ),
    ],
    ids=["string", "key", "pythonic", "tags"],
)
def test_lone_surrogates_stay_escapes(format: ToolFormat, answer: str, arguments: str) -> None:
    """Arguments are Unicode text, whatever escapes a model writes."""
    assert read(format, [answer])[1] == [("f", arguments)]
    arguments.encode()


def test_strings_of_tags_stream_as_they_are_written() -> None:
    """Only what may become a tag, or the last line feed, is held back."""
    parser = ToolCallParser(QWEN3_CODER, NAMES)
    assert parser.push("<tool_call><function=f>").calls[0].name == "f"
    assert parser.push("<parameter=q>\nab").calls[0].arguments == '{"q": "ab'
    assert parser.push("\n").calls == ()
    assert parser.push("c </").calls[0].arguments == "\\nc "
    assert parser.push("b></parameter>").calls[0].arguments == '</b>"'
    assert parser.push("</function>").calls[0].arguments == "}"
