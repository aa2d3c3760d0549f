"""Messages with OpenAI's older form of tool calls, `function_call` and the role `function`.

The API still accepts them in a conversation. Chat templates know the newer form only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from pydantic import Field

from gateway.schemas.common import Body, to_json
from mesh.protocol.chat import ChatMessage

FUNCTION = "function"
"""The role of a message with the result of a call."""


class FunctionCall(Body):
    """A call in a message of the assistant."""

    name: str = Field(min_length=1)
    arguments: str = ""


def call_id(message: int) -> str:
    """The id of the call in a message, by its index: the older form has none.

    Nine letters and digits, the only form that Mistral's templates accept.
    """
    return f"call{message:05}"


def call_json(call: FunctionCall, message: int) -> str:
    """The call as `tool_calls`."""
    function = {"name": call.name, "arguments": call.arguments}
    calls = [{"id": call_id(message), "type": "function", "function": function}]
    return to_json(calls, f"messages[{message}].function_call")


def with_results(
    messages: Iterable[ChatMessage], calls: Mapping[int, FunctionCall]
) -> Iterator[ChatMessage]:
    """The messages, those of the role `function` as results of the latest call of that name.

    `calls` has the older calls by the indices of their messages.
    """
    ids: dict[str, str] = {}
    for index, message in enumerate(messages):
        if index in calls:
            ids[calls[index].name] = call_id(index)
        if message.role == FUNCTION:
            yield replace(message, role="tool", tool_call_id=ids.get(message.name, ""))
        else:
            yield message
