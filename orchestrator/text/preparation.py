"""Turns a request's prompt into what a generation needs: token ids, constraint, answer parser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from mesh.errors import invalid
from mesh.protocol.chat import ChatPrompt, ToolChoice, ToolPrompt
from mesh.protocol.constraints import OutputConstraint
from mesh.protocol.prompt import Prompt
from orchestrator.clients.tokenizer import Encoded, LocalTokenizer, TokenizerClient
from orchestrator.text.answer import AnswerParser
from orchestrator.text.format_choice import DETECTED, FormatChoice
from orchestrator.text.harmony import HarmonyParser
from orchestrator.text.reasoning import ReasoningParser
from orchestrator.text.tools.constraint import (
    Tool,
    calls_or_answer,
    in_channels,
    parse_tools,
    tool_constraint,
    with_thinking,
)
from orchestrator.text.tools.formats import HERMES, LLAMA3
from orchestrator.text.tools.tool_calls import ToolCallParser
from orchestrator.text.tools.tool_format import AnswerFormat

TAIL_TOKENS = 8
"""Tokens at the end of a prompt that are searched for an opened `<think>` tag."""


class PreparedPrompt(NamedTuple):
    """A prompt that is ready for generation."""

    encoded: Encoded
    answer: AnswerParser | HarmonyParser | None = None
    """Parses the answer to a conversation; None: the answer is plain text."""
    constraint: OutputConstraint | None = None
    """Form that the generated text must have."""
    constraint_field: str = "constraint"
    """The request's field that the constraint was made of, for errors."""
    echo: str | None = None
    """Text of the prompt, to be sent before the generated text."""
    kept: frozenset[str] = frozenset()
    """Special tokens that stay in the text because the answer parser needs them."""
    num_passages: int = 0
    """Number of sources that the prompt quotes."""


async def prepare(
    tokenizer: TokenizerClient,
    prompt: Prompt,
    constraint: OutputConstraint | None,
    echo: bool,
    tool_choice: ToolChoice,
    max_tokens: int = 0,
    formats: FormatChoice = DETECTED,
) -> PreparedPrompt:
    """Encodes the prompt. Raises MeshError if the template or the tools reject it.

    `formats` may replace the formats that the chat template shows. A prompt that certainly has
    more than `max_tokens` tokens is refused sooner; 0 is no limit.
    """
    if isinstance(prompt, ChatPrompt):
        if echo:
            raise invalid("echo", "echo must be false for a conversation, given true")
        return await _prepare_chat(tokenizer, prompt, constraint, tool_choice, max_tokens, formats)
    if isinstance(prompt, str):
        encoded = await tokenizer.encode_prompt(prompt, max_tokens)
        return PreparedPrompt(
            encoded,
            constraint=constraint,
            constraint_field=_field_of(constraint),
            echo=prompt if echo else None,
        )
    text = await tokenizer.decode(prompt.ids) if echo else None
    local = await tokenizer.current()  # the one that has decoded
    encoded = Encoded(prompt.ids, local.decoder, vocabulary_sha256=local.vocabulary_sha256)
    return PreparedPrompt(
        encoded, constraint=constraint, constraint_field=_field_of(constraint), echo=text
    )


async def _prepare_chat(
    tokenizer: TokenizerClient,
    prompt: ChatPrompt,
    constraint: OutputConstraint | None,
    choice: ToolChoice,
    max_tokens: int,
    formats: FormatChoice,
) -> PreparedPrompt:
    # Checked before the template is rendered: its own error messages do not name the field.
    tools = parse_tools(prompt.tools_json)
    encoded = await tokenizer.encode_chat(prompt, max_tokens)
    local = await tokenizer.current()
    format = formats.of(local.format)
    if encoded.tool_prompt is ToolPrompt.GENERIC:
        format = replace(format, tools=HERMES)
    token_id = local.decoder.token_id
    forced = tool_constraint(tools, choice, format.tools, token_id)
    if forced is not None and constraint is not None:
        raise invalid("response_format", "response_format must be text where a tool must be called")
    field = _field_of(constraint) if forced is None else "tools_json"
    answers_only = forced is None
    if constraint is not None and tools and format.tools is not None:
        constraint = calls_or_answer(
            tools, format.tools, token_id, constraint, single=choice.single
        )
        answers_only = False
    constraint = forced or constraint
    begun = _thinking_begun(format, encoded, local)
    if constraint is not None and format.is_harmony:
        constraint = in_channels(constraint, token_id, final=answers_only)
    elif constraint is not None and format.reasoning is not None:
        constraint = with_thinking(constraint, format.reasoning, token_id, begun=begun)
    if constraint is not None and format.tools is not None:
        format = replace(format, tools=format.tools.enforced)
    answer = _parser(format, tools, choice, begun=begun, forced=forced is not None)
    kept = format.markers if answer is not None else frozenset[str]()
    return PreparedPrompt(
        encoded, answer=answer, constraint=constraint, constraint_field=field, kept=kept
    )


def bind(
    encoded: Encoded, local: LocalTokenizer, constraint: OutputConstraint, formats: FormatChoice
) -> PreparedPrompt:
    """An encoded conversation whose answer is `constraint` alone.

    Without reasoning, unless the prompt begins it or the format requires its place.
    """
    format = formats.of(local.format)
    begun = _thinking_begun(format, encoded, local)
    reasoning = format.reasoning if begun else None
    token_id = local.decoder.token_id
    if format.is_harmony:
        constraint = in_channels(constraint, token_id, final=True)
    elif reasoning is not None:
        constraint = with_thinking(constraint, reasoning, token_id, begun=True)
    answer = _parser(
        replace(format, reasoning=reasoning), (), ToolChoice(), begun=begun, forced=False
    )
    kept = format.markers if answer is not None else frozenset[str]()
    return PreparedPrompt(encoded, answer=answer, constraint=constraint, kept=kept)


def _parser(
    format: AnswerFormat, tools: Sequence[Tool], choice: ToolChoice, *, begun: bool, forced: bool
) -> AnswerParser | HarmonyParser | None:
    """The parser of an answer in this format; None if there is nothing to find in it."""
    schemas = {tool.name: tool.parameters for tool in tools}
    if format.is_harmony:
        return HarmonyParser(schemas, single=choice.single)
    calls = None
    if tools and (format.tools is not None or forced):
        calls = ToolCallParser(format.tools or LLAMA3, schemas, single=choice.single, forced=forced)
    reasoning = None
    if format.reasoning is not None:
        reasoning = ReasoningParser(format.reasoning, begun=begun)
    return None if calls is None and reasoning is None else AnswerParser(reasoning, calls)


def _field_of(constraint: OutputConstraint | None) -> str:
    return "constraint" if constraint is None else constraint.field


def _thinking_begun(format: AnswerFormat, encoded: Encoded, local: LocalTokenizer) -> bool:
    if format.reasoning is None:
        return False
    spelled = [local.decoder.token_bytes(i) for i in encoded.token_ids[-TAIL_TOKENS:]]
    tail = b"".join(spelled).decode(errors="replace")
    return tail.rstrip().endswith(format.reasoning.start)
