"""The registry of tool-call and reasoning formats: by name, and by a model's chat template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from orchestrator.text.tools.tool_format import (
    ARGS,
    CALL_ID,
    HARMONY_CHANNEL,
    HARMONY_CONSTRAIN,
    HARMONY_ENDS,
    HARMONY_MESSAGE,
    AnswerFormat,
    CallStyle,
    Head,
    ReasoningFormat,
    Tags,
    ToolFormat,
)

AUTO = "auto"
"""The format that the chat template shows."""
NONE = "none"

HERMES = ToolFormat(name="hermes", start="<tool_call>", end="</tool_call>", separator="\n")
"""Hermes, Qwen2.5, Qwen3: `<tool_call>{"name": …, "arguments": …}</tool_call>`."""

LLAMA3 = ToolFormat(
    name="llama3",
    start="<|python_tag|>",
    bare="{",
    between=",;",
    separator="; ",
    arguments="parameters",
)
"""Llama 3: `{"name": …, "parameters": …}`, several with `;` between."""

PYTHONIC = ToolFormat(
    name="pythonic",
    style=CallStyle.PYTHON,
    start="<|python_start|>",
    close="<|python_end|>",
    bare="[",
    between=",",
    constrained=LLAMA3,
)
"""Llama 3.2 and 4: `[name(key="value"), …]`."""

MISTRAL = ToolFormat(
    name="mistral",
    start="[TOOL_CALLS]",
    brackets=True,
    between=",;",
    others=(ARGS, CALL_ID),
    head=Head(
        pattern=re.compile(
            rf"([\w.-]+)\s*(?:{re.escape(CALL_ID)}\s*[\w-]*\s*)?(?:{re.escape(ARGS)}\s*)?"
        ),
        begin=re.compile(r"[\w.-]+\s*(?:\[[A-Z_]*\]?\s*[\w-]*\s*){0,2}"),
    ),
    separator=", ",
    # Mistral's templates reject any other id when a later message refers to the call.
    id_prefix="",
    id_length=9,
)
"""Mistral: `[TOOL_CALLS][{"name": …, "arguments": …}]`."""
MISTRAL_ARGS = replace(
    MISTRAL, name="mistral-args", name_first=True, separator="", around_arguments=(ARGS, "")
)
"""Mistral since 2025: `[TOOL_CALLS]name[ARGS]{…}` for each call."""
MISTRAL_CALL_ID = replace(MISTRAL_ARGS, name="mistral-call-id", call_id=True)
"""Mistral Small 3.2: `[TOOL_CALLS]name[CALL_ID]123456789[ARGS]{…}`."""

GRANITE = ToolFormat(
    name="granite", start="<|tool_call|>", brackets=True, between=",;", separator=", "
)
"""Granite 3: `<|tool_call|>[{"name": …, "arguments": …}]`."""

PHI4_MINI = replace(GRANITE, name="phi4-mini", start="functools")
"""Phi-4-mini: `functools[{"name": …, "arguments": …}]`."""

QWEN3_CODER = ToolFormat(
    name="qwen3-coder",
    style=CallStyle.TAGS,
    start=HERMES.start,
    end=HERMES.end,
    tags=Tags(
        name=("<function=", ">"),
        key=("<parameter=", ">"),
        value_end="</parameter>",
        end="</function>",
        padded=True,
    ),
    constrained=HERMES,
)
"""Qwen3-Coder: `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`.
"""

GLM = ToolFormat(
    name="glm",
    style=CallStyle.TAGS,
    start=HERMES.start,
    end=HERMES.end,
    tags=Tags(
        name=("", ""),
        key=("<arg_key>", "</arg_key>"),
        value="<arg_value>",
        value_end="</arg_value>",
    ),
    constrained=HERMES,
)
"""GLM-4.5: `<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>`."""

_DEEPSEEK_CALL, _DEEPSEEK_SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"

DEEPSEEK_V3 = ToolFormat(
    name="deepseek-v3",
    start="<｜tool▁calls▁begin｜>",
    end="<｜tool▁call▁end｜>",
    again=_DEEPSEEK_CALL,
    close="<｜tool▁calls▁end｜>",
    between="`",
    others=(_DEEPSEEK_SEPARATOR,),
    head=Head(
        pattern=re.compile(
            rf"(?:{_DEEPSEEK_CALL})?\s*(?:function{re.escape(_DEEPSEEK_SEPARATOR)})?\s*"
            rf"([\w.-]+)\s*(?:{re.escape(_DEEPSEEK_SEPARATOR)})?\s*(?:```(?:json)?\s*)?"
        ),
        begin=re.compile(r"[^{}\[\]\"]+"),
    ),
    name_first=True,
    separator="\n",
    before_name=f"function{_DEEPSEEK_SEPARATOR}",
    around_arguments=("\n```json\n", "\n```"),
)
"""DeepSeek V3 and R1: a name, and its arguments in a code block, between markers."""
DEEPSEEK_V31 = replace(
    DEEPSEEK_V3,
    name="deepseek-v3.1",
    separator="",
    before_name="",
    around_arguments=(_DEEPSEEK_SEPARATOR, ""),
)
"""DeepSeek V3.1: `<｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}<｜tool▁call▁end｜>`."""

HARMONY = ToolFormat(
    name="harmony",
    style=CallStyle.HARMONY,
    start=HARMONY_CHANNEL,
    others=(HARMONY_MESSAGE, HARMONY_CONSTRAIN, *HARMONY_ENDS),
    name_first=True,
    before_name="commentary to=functions.",
    around_arguments=(f" {HARMONY_CONSTRAIN}json{HARMONY_MESSAGE}", ""),
)
"""gpt-oss: `<|channel|>commentary to=functions.name <|constrain|>json<|message|>{…}<|call|>`."""

TOOL_FORMATS: Mapping[str, ToolFormat] = {
    format.name: format
    for format in (
        *(HERMES, LLAMA3, PYTHONIC, MISTRAL, MISTRAL_ARGS, MISTRAL_CALL_ID),
        *(GRANITE, PHI4_MINI, QWEN3_CODER, GLM, DEEPSEEK_V3, DEEPSEEK_V31, HARMONY),
    )
}

THINK = ReasoningFormat("think", "<think>", "</think>")
"""DeepSeek R1, Qwen3, GLM and most others."""
MISTRAL_THINK = ReasoningFormat("mistral", "[THINK]", "[/THINK]")
"""Magistral."""
SEED_THINK = ReasoningFormat("seed", "<seed:think>", "</seed:think>")
"""Seed-OSS."""

REASONING_FORMATS: Mapping[str, ReasoningFormat] = {
    format.name: format for format in (THINK, MISTRAL_THINK, SEED_THINK)
}


def answer_format(templates: Iterable[str]) -> AnswerFormat:
    """The answer format of a model, from its chat templates."""
    text = "\0".join(templates)
    tools = _tool_format(text)
    if tools is HARMONY:
        return AnswerFormat(HARMONY)
    found = [format for format in REASONING_FORMATS.values() if format.end in text]
    return AnswerFormat(tools, found[0] if found else None)


def _tool_format(template: str) -> ToolFormat | None:
    for texts, format in _RECOGNIZED:
        if all(text in template for text in texts):
            return format
    return None


_RECOGNIZED: tuple[tuple[tuple[str, ...], ToolFormat], ...] = (
    ((HARMONY_CHANNEL,), HARMONY),
    ((MISTRAL.start, CALL_ID), MISTRAL_CALL_ID),
    ((MISTRAL.start, ARGS), MISTRAL_ARGS),
    ((MISTRAL.start,), MISTRAL),
    ((DEEPSEEK_V3.start, "```json"), DEEPSEEK_V3),
    ((DEEPSEEK_V3.start,), DEEPSEEK_V31),
    ((GRANITE.start,), GRANITE),
    (("<|tool|>", "<|/tool|>"), PHI4_MINI),
    ((QWEN3_CODER.start, "<function="), QWEN3_CODER),
    ((GLM.start, "<arg_key>"), GLM),
    ((HERMES.start,), HERMES),
    ((PYTHONIC.start,), PYTHONIC),
    (("func_name1(",), PYTHONIC),
    ((LLAMA3.start,), LLAMA3),
    (('"parameters": ',), LLAMA3),
)
"""Texts of a chat template, and the format of a template that has them; in order, because
several families share a marker."""
