"""What is asked becomes what is generated: a prompt's ids, its constraint, its answer's reader."""

from __future__ import annotations

from typing import NamedTuple

from mesh.errors import invalid
from mesh.protocol.chat import ChatPrompt, ToolChoice
from mesh.protocol.constraints import OutputConstraint
from mesh.protocol.prompt import Prompt
from orchestrator.clients.tokenizer import Encoded, LocalTokenizer, TokenizerClient
from orchestrator.text.answer import Answer
from orchestrator.text.reasoning import Reasoning
from orchestrator.text.tools.constraint import parse_tools, tool_constraint, with_thinking
from orchestrator.text.tools.tool_calls import ToolCalls
from orchestrator.text.tools.tool_format import LLAMA3, THINK_START

TAIL_TOKENS = 8
"""Of a prompt's end: what a template writes behind the last message to open a tag."""


class Prepared(NamedTuple):
    """A prompt that is ready to be generated from."""

    encoded: Encoded
    answer: Answer | None = None
    """Reads the answer of a conversation; None: it is its text."""
    constraint: OutputConstraint | None = None
    """What the text is held to."""
    echo: str | None = None
    """The prompt's own text, to be told first."""
    kept: frozenset[str] = frozenset()
    """Special tokens that the answer's reader must see."""


def as_prepared(encoded: Encoded | Prepared) -> Prepared:
    """Ids alone are a prompt with nothing more to it."""
    return encoded if isinstance(encoded, Prepared) else Prepared(encoded)


async def prepare(
    tokenizer: TokenizerClient,
    prompt: Prompt,
    constraint: OutputConstraint | None,
    echo: bool,
    tool_choice: ToolChoice,
) -> Prepared:
    """Encodes the prompt. Raises MeshError for what fits neither the template nor its tools."""
    if isinstance(prompt, ChatPrompt):
        if echo:
            raise invalid("echo", "echo must be false for a conversation, given true")
        return await _prepare_chat(tokenizer, prompt, constraint, tool_choice)
    if isinstance(prompt, str):
        encoded = await tokenizer.encode_text(prompt)
        return Prepared(encoded, constraint=constraint, echo=prompt if echo else None)
    encoded = Encoded(prompt.ids, (await tokenizer.current()).decoder)
    text = encoded.decoder.text(prompt.ids) if echo else None
    return Prepared(encoded, constraint=constraint, echo=text)


async def _prepare_chat(
    tokenizer: TokenizerClient,
    prompt: ChatPrompt,
    constraint: OutputConstraint | None,
    choice: ToolChoice,
) -> Prepared:
    # Before the template sees them: it would refuse them in words of its own.
    tools = parse_tools(prompt.tools_json)
    encoded = await tokenizer.encode_chat(prompt)
    local = await tokenizer.current()
    format = local.format
    forced = tool_constraint(tools, choice, format.tools, local.decoder.token_id)
    if forced is not None and constraint is not None:
        raise invalid("response_format", "response_format must be text where a tool must be called")
    constraint = forced or constraint
    begun = format.thinks and _thinking_begun(encoded, local)
    if constraint is not None and format.thinks:
        constraint = with_thinking(constraint, local.decoder.token_id, begun=begun)
    calls = None
    if tools and (format.tools is not None or forced is not None):
        names = frozenset(tool.name for tool in tools)
        calls = ToolCalls(format.tools or LLAMA3, names, single=choice.single)
    reasoning = Reasoning(begun=begun) if format.thinks else None
    answer = None if calls is None and reasoning is None else Answer(reasoning, calls)
    kept = format.markers if answer is not None else frozenset[str]()
    return Prepared(encoded, answer=answer, constraint=constraint, kept=kept)


def _thinking_begun(encoded: Encoded, local: LocalTokenizer) -> bool:
    pieces = [local.decoder.token_bytes(i) for i in encoded.token_ids[-TAIL_TOKENS:]]
    tail = b"".join(pieces).decode(errors="replace")
    return tail.rstrip().endswith(THINK_START)
