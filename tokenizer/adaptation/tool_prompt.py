"""Tools for models whose chat template does not render them: the Hermes format, as plain text.

Qwen2.5 and Hermes are trained with this text; vLLM and llama.cpp have parsers for its calls.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizer.chat.conversation import Json, Message

_DESCRIPTION = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def with_tool_prompt(
    messages: Sequence[Message], tools: Sequence[Json], *, system_messages: bool
) -> list[Message]:
    """The messages with the tools described in the system message, or in a new one.

    Without `system_messages` the description is at the start of the first message, because the
    template would omit a system message.
    """
    description = _DESCRIPTION.format(tools="\n".join(map(_dump, tools)))
    first, *rest = messages
    if first["role"] == "system" or not system_messages:
        text = str(first["content"] or "")
        parts = [text, description] if system_messages else [description, text]
        return [{**first, "content": "\n\n".join(filter(None, parts))}, *rest]
    return [{"role": "system", "content": description}, *messages]


def with_calls_as_text(message: Message) -> Message:
    """The assistant's message with its calls in the content."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    texts = [str(message["content"] or ""), *map(_call_text, calls)]
    fields = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**fields, "content": "\n".join(filter(None, texts))}


def with_answers_as_user(messages: Sequence[Message]) -> list[Message]:
    """The messages with those of role `tool` as messages of the user.

    Consecutive ones, and the user's message after them, become one, because many templates
    require that user and assistant alternate.
    """
    converted: list[Message] = []
    after_answer = False
    for message in messages:
        is_answer = message["role"] == "tool"
        text = str(message["content"])
        if is_answer:
            text = f"<tool_response>\n{text}\n</tool_response>"
        if after_answer and message["role"] in ("tool", "user"):
            converted[-1] = {**converted[-1], "content": f"{converted[-1]['content']}\n{text}"}
        elif is_answer:
            converted.append({"role": "user", "content": text})
        else:
            converted.append(message)
        after_answer = is_answer
    return converted


def _call_text(call: Json) -> str:
    function = call["function"] if isinstance(call, dict) else None
    assert isinstance(function, dict), "calls are validated before"
    described: Json = {"name": function["name"], "arguments": function["arguments"]}
    return f"<tool_call>\n{_dump(described)}\n</tool_call>"


def _dump(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)
