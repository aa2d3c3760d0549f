"""Grammars that force tool calls, checked by the library that the engine uses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from inference.structured_output.grammar import build_grammar
from mesh.errors import MeshError
from mesh.protocol.chat import ToolChoice
from mesh.protocol.constraints import ConstraintForm, OutputConstraint
from mesh.text.detokenizer import Decoder
from orchestrator.text.tools.constraint import (
    MAX_CALLS,
    calls_or_answer,
    in_channels,
    parse_tools,
    tool_constraint,
    with_thinking,
)
from orchestrator.text.tools.formats import (
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    GLM,
    HARMONY,
    HERMES,
    LLAMA3,
    MISTRAL,
    MISTRAL_ARGS,
    MISTRAL_CALL_ID,
    PYTHONIC,
    QWEN3_CODER,
    THINK,
)
from orchestrator.text.tools.tool_calls import ToolCallParser
from orchestrator.text.tools.tool_format import ToolFormat
from tests.tokenizer.conftest import train_tokenizer

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = json.dumps(
    [
        {"type": "function", "function": {"name": "weather", "parameters": CITY}},
        {"type": "function", "function": {"name": "now"}},
    ]
)
ROME = '{"city":"Rome \\"x\\" é","days":3}'

ANSWERS = {
    "hermes": (HERMES, '<tool_call>\n{"name": "weather", "arguments": %s}\n</tool_call>'),
    "llama3": (LLAMA3, '{"name": "weather", "parameters": %s}'),
    "mistral": (MISTRAL, '[TOOL_CALLS][{"name": "weather", "arguments": %s}]'),
    "mistral-args": (MISTRAL_ARGS, "[TOOL_CALLS]weather[ARGS]%s"),
    "mistral-call-id": (MISTRAL_CALL_ID, "[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]%s"),
    # Formats without JSON are replaced by one with JSON where a grammar enforces the schema.
    "qwen3-coder": (QWEN3_CODER, '<tool_call>\n{"name": "weather", "arguments": %s}\n</tool_call>'),
    "glm": (GLM, '<tool_call>\n{"name": "weather", "arguments": %s}\n</tool_call>'),
    "pythonic": (PYTHONIC, '{"name": "weather", "parameters": %s}'),
}
DEEPSEEK = {
    "deepseek-v3": (
        DEEPSEEK_V3,
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n%s\n```<｜tool▁call▁end｜>",
    ),
    "deepseek-v3.1": (
        DEEPSEEK_V31,
        "<｜tool▁call▁begin｜>weather<｜tool▁sep｜>%s<｜tool▁call▁end｜>",
    ),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A tokenizer with the markers as single tokens."""
    return train_tokenizer()


def allows(tokenizer: Tokenizer, constraint: OutputConstraint | None, text: str) -> bool:
    """Whether the grammar allows exactly this text."""
    assert constraint is not None
    assert constraint.form == "grammar"
    eos = tokenizer.token_to_id("</s>")
    grammar = build_grammar(constraint, close_objects=True)
    matcher = LLMatcher(LLTokenizer(tokenizer.to_str(), eos_token=[eos]), grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def constraint_of(
    tokenizer: Tokenizer, format: ToolFormat | None, choice: ToolChoice, tools: str = TOOLS
) -> OutputConstraint | None:
    """The constraint for this format and choice."""
    return tool_constraint(parse_tools(tools), choice, format, Decoder(tokenizer).token_id)


@pytest.mark.parametrize("name", ANSWERS)
def test_required_allows_only_calls(tokenizer: Tokenizer, name: str) -> None:
    """In the model's format, with arguments that match their schema."""
    format, answer = ANSWERS[name]
    required = constraint_of(tokenizer, format, ToolChoice(required=True))
    assert allows(tokenizer, required, answer % ROME)
    other = answer.replace("weather", "now") % "{}"
    assert allows(tokenizer, required, other)
    assert not allows(tokenizer, required, answer % "{}")
    assert not allows(tokenizer, required, answer.replace("weather", "never") % ROME)
    assert not allows(tokenizer, required, "It is sunny.")
    assert not allows(tokenizer, required, "")


@pytest.mark.parametrize("name", ANSWERS)
def test_the_parser_reads_what_the_grammar_allows(tokenizer: Tokenizer, name: str) -> None:
    """Two forced calls are parsed."""
    format, answer = ANSWERS[name]
    if format is MISTRAL:
        text = answer % ROME
        text = text[:-1] + format.separator + '{"name": "now", "arguments": {}}]'
    else:
        text = answer % ROME + format.enforced.separator + answer.replace("weather", "now") % "{}"
    format = format.enforced
    assert allows(tokenizer, constraint_of(tokenizer, format, ToolChoice(required=True)), text)
    single = constraint_of(tokenizer, format, ToolChoice(required=True, single=True))
    assert not allows(tokenizer, single, text)
    parser = ToolCallParser(format, ["weather", "now"])
    calls = (*parser.push(text).calls, *parser.flush().calls)
    assert [each.name for each in calls if each.name] == ["weather", "now"]
    assert "".join(each.arguments for each in calls) == ROME + "{}"


@pytest.mark.parametrize("name", ANSWERS)
def test_a_named_tool_is_called_once(tokenizer: Tokenizer, name: str) -> None:
    """No other tool, and no second call."""
    format, answer = ANSWERS[name]
    named = constraint_of(tokenizer, format, ToolChoice(name="now"))
    assert allows(tokenizer, named, answer.replace("weather", "now") % "{}")
    assert not allows(tokenizer, named, answer % ROME)


def test_the_number_of_calls_is_limited(tokenizer: Tokenizer) -> None:
    """A forced answer ends after `MAX_CALLS` calls."""
    required = constraint_of(tokenizer, LLAMA3, ToolChoice(required=True))
    one = '{"name": "now", "parameters": {}}'
    assert allows(tokenizer, required, "; ".join([one] * MAX_CALLS))
    assert not allows(tokenizer, required, "; ".join([one] * (MAX_CALLS + 1)))


def test_a_template_without_tools_uses_plain_json(tokenizer: Tokenizer) -> None:
    """So forced calls work with any model."""
    named = constraint_of(tokenizer, None, ToolChoice(name="now"))
    assert allows(tokenizer, named, '{"name": "now", "parameters": {}}')


SCHEMA = OutputConstraint(
    ConstraintForm.JSON_SCHEMA, json.dumps({"type": "object", "required": ["a"]})
)


@pytest.mark.parametrize("tags", [True, False])
@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        (SCHEMA, '{"a": 1}', "{}"),
        (OutputConstraint(ConstraintForm.JSON_OBJECT), "{}", "[]"),
        (
            OutputConstraint(ConstraintForm.GRAMMAR, 'start: yes | no\nyes: "y"\nno: "n"\n'),
            "y",
            "x",
        ),
    ],
)
def test_reasoning_is_unconstrained(
    tokenizer: Tokenizer, tags: bool, constraint: OutputConstraint, good: str, bad: str
) -> None:
    """The constraint applies after it, also if the tags are not single tokens."""
    ids = Decoder(tokenizer).token_id
    plain = Tokenizer.from_str(tokenizer.to_str().replace("think>", "thonk>"))
    vocabulary = tokenizer if tags else plain
    free = with_thinking(constraint, THINK, ids if tags else lambda _: None, begun=False)
    begun = with_thinking(constraint, THINK, ids if tags else lambda _: None, begun=True)
    assert allows(vocabulary, free, good)
    assert allows(vocabulary, free, f"<think>{bad} hm</think>\n\n{good}")
    assert not allows(vocabulary, free, bad)
    assert not allows(vocabulary, free, f"<think>hm</think>{bad}")
    assert allows(vocabulary, begun, f"hm</think>{good}")
    assert not allows(vocabulary, begun, bad)


ANY_OBJECT = OutputConstraint(ConstraintForm.JSON_OBJECT)
YES = OutputConstraint(ConstraintForm.GRAMMAR, 'start: yes+\nyes: "y"\n')


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [(SCHEMA, '{"a": 1}', '{"b": 1}'), (ANY_OBJECT, "{}", "[]"), (YES, "yy", "n")],
)
def test_an_answer_format_leaves_calls_possible(
    tokenizer: Tokenizer, name: str, constraint: OutputConstraint, good: str, bad: str, thinks: bool
) -> None:
    """The model either calls tools or answers in the format, after its reasoning."""
    format, answer = ANSWERS[name]
    ids = Decoder(tokenizer).token_id
    both = calls_or_answer(parse_tools(TOOLS), format, ids, constraint, single=False)
    before = ""
    if thinks:
        both, before = with_thinking(both, THINK, ids, begun=False), "<think>hm</think>\n"
    call = answer % ROME
    assert allows(tokenizer, both, before + call)
    assert allows(tokenizer, both, before + good)
    assert not allows(tokenizer, both, before + bad)
    assert not allows(tokenizer, both, before + good + call)
    # Any JSON object may look like a wrong call of a model that writes calls without a marker.
    assert allows(tokenizer, both, before + answer % "[]") == (
        format.enforced is LLAMA3 and constraint is ANY_OBJECT
    )
    if format.separator and format is not MISTRAL:
        assert allows(tokenizer, both, before + call + format.separator + call)
        single = calls_or_answer(parse_tools(TOOLS), format, ids, constraint, single=True)
        assert not allows(tokenizer, single, call + format.separator + call)


@pytest.mark.parametrize("name", ANSWERS)
def test_beside_an_answer_format_arguments_are_free(tokenizer: Tokenizer, name: str) -> None:
    """As without one: a tool's schema that cannot be enforced refuses nothing."""
    format, answer = ANSWERS[name]
    parameters = {"type": "object", "properties": {"city": {"pattern": "(?=R)Rome"}}}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    both = calls_or_answer(
        parse_tools(json.dumps(tools)), format, Decoder(tokenizer).token_id, SCHEMA, single=False
    )
    for arguments in ("{}", '{"city": "Rome", "days": [1, {}]}', ROME):
        assert allows(tokenizer, both, answer % arguments)


def test_an_answer_may_begin_like_a_call(tokenizer: Tokenizer) -> None:
    """Where no marker precedes calls."""
    properties: dict[str, Any] = {"name": {"type": "string"}, "age": {}}
    person = {"type": "object", "properties": properties, "required": ["name"]}
    text = json.dumps({**person, "additionalProperties": False})
    answer = OutputConstraint(ConstraintForm.JSON_SCHEMA, text)
    both = calls_or_answer(parse_tools(TOOLS), LLAMA3, lambda _: None, answer, single=False)
    assert allows(tokenizer, both, '{"name": "weather", "parameters": %s}' % ROME)  # noqa: UP031
    assert not allows(tokenizer, both, '{"name": "Bob", "parameters": {}}')
    for text in ('{"name": "weather", "age": 3}', '{"name": "Bob"}', '{"name":"Bob","age":3}'):
        assert allows(tokenizer, both, text)


def test_a_regular_expression_binds_the_whole_answer() -> None:
    """A grammar cannot express it exactly, so no call is possible beside it."""
    regex = OutputConstraint(ConstraintForm.REGEX, "a+")
    tools = parse_tools(TOOLS)
    assert calls_or_answer(tools, HERMES, lambda _: None, regex, single=False) is regex


def test_calls_follow_reasoning(tokenizer: Tokenizer) -> None:
    """Required calls come after the reasoning."""
    required = constraint_of(tokenizer, HERMES, ToolChoice(required=True))
    assert required is not None
    free = with_thinking(required, THINK, Decoder(tokenizer).token_id, begun=False)
    answer = ANSWERS["hermes"][1] % ROME
    assert allows(tokenizer, free, answer)
    assert allows(tokenizer, free, f"<think>\nhm\n</think>\n\n{answer}")
    assert (
        with_thinking(
            OutputConstraint(ConstraintForm.REGEX, "a"), THINK, lambda _: None, begun=False
        ).form
        == "regex"
    )


@pytest.mark.parametrize(
    ("tools", "choice", "words"),
    [
        ("", ToolChoice(required=True), "tool_choice must come with tools"),
        (TOOLS, ToolChoice(name="never"), r"one of the tools \(weather, now\), given 'never'"),
        ("{}", ToolChoice(), "tools must be an array"),
        ("[1]", ToolChoice(), r"tools\[0\].function.name must be a string"),
        ("[{", ToolChoice(), "tools must be JSON"),
        (
            '[{"function": {"name": "f", "parameters": 1}}]',
            ToolChoice(),
            r"tools\[0\].function.parameters must be an object",
        ),
    ],
)
def test_invalid_tools_are_refused(
    tokenizer: Tokenizer, tools: str, choice: ToolChoice, words: str
) -> None:
    """The error names the field, the limit and the given value."""
    with pytest.raises(MeshError, match=words):
        constraint_of(tokenizer, HERMES, choice, tools)


@pytest.mark.parametrize("name", DEEPSEEK)
def test_deepseeks_calls_are_between_two_markers(tokenizer: Tokenizer, name: str) -> None:
    """One call or two, which the parser reads."""
    format, call = DEEPSEEK[name]
    calls = [call % ROME, call.replace("weather", "now") % "{}"]
    one = f"<｜tool▁calls▁begin｜>{calls[0]}<｜tool▁calls▁end｜>"
    two = f"<｜tool▁calls▁begin｜>{format.separator.join(calls)}<｜tool▁calls▁end｜>"
    required = constraint_of(tokenizer, format, ToolChoice(required=True))
    single = constraint_of(tokenizer, format, ToolChoice(required=True, single=True))
    assert allows(tokenizer, required, one)
    assert allows(tokenizer, required, two)
    assert allows(tokenizer, single, one)
    assert not allows(tokenizer, single, two)
    assert not allows(tokenizer, required, one.replace("Rome", '", "x": "'))
    parser = ToolCallParser(format, ["weather", "now"])
    parsed = (*parser.push(two).calls, *parser.flush().calls)
    assert [each.name for each in parsed if each.name] == ["weather", "now"]
    arguments = "".join(each.arguments for each in parsed if each.number == 0)
    assert json.loads(arguments) == json.loads(ROME)


def test_harmonys_messages_are_constrained_after_the_analysis(tokenizer: Tokenizer) -> None:
    """A forced call, an answer in JSON, and either of them."""
    ids = Decoder(tokenizer).token_id
    analysis = "<|channel|>analysis<|message|>Hm {<|end|><|start|>assistant"
    header = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    call, answer = header + ROME, '<|channel|>final<|message|>{"a": 1}'
    forced = constraint_of(tokenizer, HARMONY, ToolChoice(required=True, single=True))
    assert forced is not None
    either = calls_or_answer(parse_tools(TOOLS), HARMONY, ids, SCHEMA, single=True)
    cases = [
        (in_channels(forced, ids, final=False), {call}),
        (in_channels(SCHEMA, ids, final=True), {answer}),
        (in_channels(either, ids, final=False), {call, answer}),
    ]
    for constraint, allowed in cases:
        for text in (call, answer, answer.replace('"a"', '"b"'), "It is sunny."):
            assert allows(tokenizer, constraint, text) == (text in allowed), text
            assert allows(tokenizer, constraint, analysis + text) == (text in allowed), text
