"""The conversation of a response: its items as the messages of a chat."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from gateway.schemas.responses.items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputMessage,
    Item,
    ReasoningItem,
)
from mesh.protocol.chat import ChatMessage

_SYSTEM_ROLES = ("system", "developer")


class Placed(NamedTuple):
    """A message, and where in the request's body it comes from."""

    message: ChatMessage
    place: str


class Located(NamedTuple):
    """An item, and its path in the request's body."""

    item: Item
    place: str


def conversation(
    instructions: str | None, previous: Iterable[Item], given: Sequence[Item]
) -> list[Placed]:
    """The messages of the instructions, the previous responses and the request's input."""
    located = [Located(item, "previous_response_id") for item in previous]
    located += [Located(item, f"input[{number}]") for number, item in enumerate(given)]
    messages = _Messages()
    if instructions is not None:
        messages.add(ChatMessage(role="system", content=instructions), "instructions")
    for item, place in located:
        messages.add_item(item, place)
    return messages.all()


class _Messages:
    """Joins the items of one turn of the assistant to one message.

    Reasoning, text and calls are separate items, and parts of one message in a chat template.
    """

    def __init__(self) -> None:
        self._placed: list[Placed] = []
        self._turn: ChatMessage | None = None
        self._calls: list[dict[str, object]] = []
        self._place = ""

    def all(self) -> list[Placed]:
        self._end_turn()
        return self._placed

    def add(self, message: ChatMessage, place: str) -> None:
        self._end_turn()
        self._placed.append(Placed(message, place))

    def add_item(self, item: Item, place: str) -> None:
        match item:
            case InputMessage(role="assistant", content=content):
                turn = self._assistant(place, ends=bool(self._has_text or self._calls))
                self._turn = replace(turn, content=content)
            case InputMessage(role=role, content=content):
                self.add(ChatMessage(role=role, content=content), place)
            case FunctionCallItem():
                self._assistant(place, ends=False)
                self._calls.append(
                    {
                        "id": item.call_id,
                        "type": "function",
                        "function": {"name": item.name, "arguments": item.arguments},
                    }
                )
            case FunctionCallOutputItem(call_id=call_id, output=output):
                self.add(ChatMessage(role="tool", content=output, tool_call_id=call_id), place)
            case ReasoningItem():
                turn = self._assistant(place, ends=self._turn is not None)
                self._turn = replace(turn, reasoning_content=item.text)

    @property
    def _has_text(self) -> bool:
        return self._turn is not None and bool(self._turn.content)

    def _assistant(self, place: str, *, ends: bool) -> ChatMessage:
        """The message of the assistant's turn; `ends`: the item begins another one."""
        if ends:
            self._end_turn()
        if self._turn is None:
            self._turn = ChatMessage(role="assistant", content="")
            self._place = place
        return self._turn

    def _end_turn(self) -> None:
        turn, self._turn = self._turn, None
        if turn is None:
            return
        if self._calls:
            turn = replace(turn, tool_calls_json=json.dumps(self._calls, ensure_ascii=False))
            self._calls = []
        if turn.content or turn.tool_calls_json or turn.reasoning_content:
            self._placed.append(Placed(turn, self._place))


def without_oldest(messages: Sequence[Placed], number: int) -> list[Placed]:
    """The messages without the oldest `number`, except for instructions and the last one.

    Results of calls that are left out are left out, too.
    """
    begin = 0
    while begin < len(messages) and messages[begin].message.role in _SYSTEM_ROLES:
        begin += 1
    rest = list(messages[min(begin + number, max(begin, len(messages) - 1)) :])
    while len(rest) > 1 and rest[0].message.role == "tool":
        rest.pop(0)
    return [*messages[:begin], *rest]
