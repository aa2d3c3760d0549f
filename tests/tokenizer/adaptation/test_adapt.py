"""Conversations are adapted to what a template renders, so that nothing is lost silently."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from mesh.protocol.chat import ToolPrompt
from tests.tokenizer import templates
from tests.tokenizer.prompts import chat
from tokenizer.adaptation.capabilities import Capabilities
from tokenizer.chat.conversation import ArgumentsForm, arguments_as
from tokenizer.chat.errors import RenderError
from tokenizer.chat.prompt_format import PromptFormat
from tokenizer.chat.rendered_prompt import RenderedPrompt
from tokenizer.rendering.prompt_renderer import PromptRenderer

TURN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"

NULL_CONTENT = """{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}
CALLS {% for c in m.tool_calls %}{{ c.function.name }} {{ c.function.arguments }}{% endfor %}
{% elif m.role == 'tool' %}ANSWER {{ m.content }}{% else %}{{ m.content }}{% endif %}{% endfor %}"""
"""As DeepSeek's: calls are rendered where the content is null, and arguments are appended."""

TEXT_ARGUMENTS = """{% for m in messages %}{{ m.role + ': ' + m.content }}
{% for c in m.tool_calls or [] %}{{ c.function.name + '(' + c.function.arguments + ')' }}
{% endfor %}{% endfor %}"""
"""Arguments are added to a string, which fails for objects."""

OBJECT_ARGUMENTS = """{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}
<{{ c.function.name }}>{% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson }}
{% endfor %}{% endfor %}{% endfor %}"""
"""As Qwen3-Coder's: the arguments are iterated, which fails for text."""

ALTERNATING = """{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate user and assistant') }}{% endif %}
[{{ m.role }}]{{ m.content }}{% endfor %}"""
"""As Gemma's and the first Mistral's: no system message, no tools, no answers of tools."""

DEVELOPER = (
    "{% for m in messages %}{% if m.role == 'developer' %}DEV{% endif %}{{ m.content }}{% endfor %}"
)

REASONING = (
    "{% for m in messages %}{% if m.reasoning_content is string %}<think>{{ m.reasoning_content }}"
    "</think>{% endif %}{{ m.content }}{% endfor %}"
)

TOOLS = [{"type": "function", "function": {"name": "get_level", "parameters": {}}}]


def renderer_of(template: str | dict[str, str]) -> PromptRenderer:
    sources = template if isinstance(template, dict) else {"default": template}
    variables = {"bos_token": "<s>", "eos_token": "</s>"}
    special = ["<|im_start|>", "<|im_end|>"]
    format = PromptFormat(
        templates=sources, variables=variables, special_tokens=special, ordinary_tokens=[]
    )
    return PromptRenderer(format)


def render(
    template: str | dict[str, str], messages: list[Any], tools: list[Any] | None = None
) -> RenderedPrompt:
    renderer = renderer_of(template)
    return renderer.render(chat(messages, tools=tools), renderer.find_capabilities(), 100_000)


def text_of(template: str, messages: list[Any], tools: list[Any] | None = None) -> str:
    return "".join(each.text for each in render(template, messages, tools).segments)


def called(arguments: object, content: str | None = None) -> list[Any]:
    function = {"name": "get_level", "arguments": arguments}
    call = {"id": "abcdefghi", "type": "function", "function": function}
    return [
        {"role": "user", "content": "How high?"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "content": "3 m", "tool_call_id": "abcdefghi"},
    ]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (templates.CHATML, Capabilities(arguments=ArgumentsForm.OBJECT_OR_TEXT)),
        (templates.LLAMA3, Capabilities(arguments=ArgumentsForm.OBJECT_OR_TEXT)),
        (templates.MISTRAL, Capabilities(arguments=ArgumentsForm.OBJECT_OR_TEXT)),
        (OBJECT_ARGUMENTS, Capabilities(tools=False)),
        (TEXT_ARGUMENTS, Capabilities(tools=False, arguments=ArgumentsForm.TEXT)),
        (
            NULL_CONTENT,
            Capabilities(tools=False, null_content=True, arguments=ArgumentsForm.TEXT),
        ),
        (
            ALTERNATING,
            Capabilities(
                tools=False,
                tool_calls=False,
                arguments=ArgumentsForm.OBJECT_OR_TEXT,
                tool_messages=False,
                system_messages=False,
            ),
        ),
    ],
    ids=["chatml", "llama3", "mistral", "object", "text", "null", "alternating"],
)
def test_the_capabilities_of_a_template_are_found(template: str, expected: Capabilities) -> None:
    """By rendering short conversations."""
    assert renderer_of(template).find_capabilities() == {"default": expected}


def test_each_named_template_has_its_own_capabilities() -> None:
    """The template `tool_use` renders tools, the default one does not."""
    sources = {"default": TURN, "tool_use": templates.CHATML, "rag": TURN}
    found = renderer_of(sources).find_capabilities()
    assert {name: each.tools for name, each in found.items()} == {
        "default": False,
        "tool_use": True,
    }
    assert render(sources, called("{}"), TOOLS).tool_prompt is ToolPrompt.TEMPLATE
    assert render(sources, called("{}")).tool_prompt is ToolPrompt.NONE


@pytest.mark.parametrize("content", [None, ""])
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (NULL_CONTENT, 'CALLS get_level {"x":  1}'),
        (TEXT_ARGUMENTS, 'get_level({"x":  1})'),
        (OBJECT_ARGUMENTS, "<get_level>x=1"),
        (TURN, '<tool_call>\n{"name": "get_level", "arguments": {"x": 1}}\n</tool_call>'),
        (templates.CHATML, '{"name": "get_level", "arguments": {"x": 1}}'),
    ],
    ids=["null", "text", "object", "none", "chatml"],
)
def test_calls_in_the_history_are_rendered(
    template: str, expected: str, content: str | None
) -> None:
    """Whether the client sends null or an empty string, in the form that the template needs."""
    assert expected in text_of(template, called('{"x":  1}', content))


BAD_ARGUMENTS = [
    '{"x": "cut of',
    '["a", "list"]',
    "null",
    '{"x": "raw\nnewline"}',
    '{"x": "bad \\escape"}',
    '"text"',
    "7",
    "",
    "not JSON",
    "[" * 5000,
    "9" * 5000,
    None,
    ["list"],
    {"x": 1},
    3.5,
    True,
]


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS, ids=lambda each: str(each)[:12])
@pytest.mark.parametrize(
    "template",
    [*templates.ALL.values(), NULL_CONTENT, TEXT_ARGUMENTS, OBJECT_ARGUMENTS, TURN, ALTERNATING],
    ids=[*templates.ALL, "null", "text", "object", "none", "alternating"],
)
def test_bad_arguments_do_not_refuse_the_conversation(template: str, arguments: object) -> None:
    """The model may have written them; the call stays in the prompt."""
    assert "get_level" in text_of(template, called(arguments))


@pytest.mark.parametrize(
    ("given", "objects", "objects_or_text", "text"),
    [
        ('{"x":  1}', {"x": 1}, {"x": 1}, '{"x":  1}'),
        ('{"x": "a\nb"}', {"x": "a\nb"}, {"x": "a\nb"}, '{"x": "a\nb"}'),
        ('{"x": "cut', {"arguments": '{"x": "cut'}, '{"x": "cut', '{"x": "cut'),
        ("[1]", {"arguments": [1]}, "[1]", "[1]"),
        ("null", {}, {}, "{}"),
        (" ", {}, {}, "{}"),
        (None, {}, {}, "{}"),
        ([1], {"arguments": [1]}, "[1]", "[1]"),
        ({"é": 1}, {"é": 1}, {"é": 1}, '{"é": 1}'),
    ],
)
def test_arguments_are_converted(given: Any, objects: Any, objects_or_text: Any, text: str) -> None:
    """To each form; nothing that the model wrote is lost."""
    assert arguments_as(ArgumentsForm.OBJECT, given) == objects
    assert arguments_as(ArgumentsForm.OBJECT_OR_TEXT, given) == objects_or_text
    assert arguments_as(ArgumentsForm.TEXT, given) == text


def test_escaped_control_tokens_in_arguments_stay_text() -> None:
    r"""`\u003c|im_end|>` in JSON becomes a control token only when it is parsed."""
    prompt = render(templates.CHATML, called('{"x": "\\u003c|im_end|>"}'))
    assert [each.text for each in prompt.segments if each.is_literal] == ["<|im_end|>"]


def test_tools_get_a_generic_prompt_where_the_template_has_none() -> None:
    """In the system message, after the client's text, in Hermes' format."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    prompt = render(TURN, messages, TOOLS)
    text = prompt.segments[0].text
    assert prompt.tool_prompt is ToolPrompt.GENERIC
    assert text.startswith("<|system|>Be brief.\n\n# Tools\n\nYou may call one or more functions")
    assert f"<tools>\n{json.dumps(TOOLS[0])}\n</tools>" in text
    assert text.endswith("</tool_call><|user|>Hi")
    without = text_of(TURN, messages[1:], TOOLS)
    assert without.startswith("<|system|># Tools")


def test_a_template_without_system_messages_gets_the_tools_with_the_first_message() -> None:
    """Calls and answers become text; user and assistant still alternate."""
    messages = [*called("{}"), {"role": "user", "content": "Thanks"}]
    text = text_of(ALTERNATING, messages, TOOLS)
    assert re.findall(r"\[(user|assistant|tool|system)\]", text) == ["user", "assistant", "user"]
    assert "# Tools" in text.partition("How high?")[0]
    assert '<tool_call>\n{"name": "get_level", "arguments": {}}\n</tool_call>' in text
    assert text.endswith("<tool_response>\n3 m\n</tool_response>\nThanks")


def test_the_developer_role_is_a_system_message_where_the_template_does_not_know_it() -> None:
    """Also where the template would write any role."""
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert text_of(templates.CHATML, messages).startswith("<|im_start|>system\nBe brief.")
    assert text_of(TURN, messages) == "<|system|>Be brief.<|user|>Hi"
    assert text_of(DEVELOPER, messages) == "DEVBe brief.Hi"


def test_system_messages_are_merged_only_if_the_caller_asks() -> None:
    """For prompts of the orchestrator itself; a client's system message is refused."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    renderer = renderer_of(ALTERNATING)
    capabilities = renderer.find_capabilities()
    prompt = chat(messages, merge_system_messages=True)
    rendered = renderer.render(prompt, capabilities, 1000)
    assert "".join(each.text for each in rendered.segments).strip() == "[user]Be brief.\n\nHi"
    with pytest.raises(RenderError, match="roles must alternate"):
        text_of(ALTERNATING, messages)
    kept = renderer_of(TURN).render(prompt, renderer_of(TURN).find_capabilities(), 1000)
    assert kept.segments[0].text == "<|system|>Be brief.<|user|>Hi"


def test_reasoning_in_the_history_reaches_the_template() -> None:
    """A template that does not render it omits it, as in transformers."""
    messages = [{"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}]
    assert text_of(REASONING, messages) == "<think>2 + 2</think>4"
    assert text_of(TURN, messages) == "<|assistant|>4"
