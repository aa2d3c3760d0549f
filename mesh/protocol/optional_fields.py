"""The fields of a message that its sender has chosen to set."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message


def optional_values(message: Message) -> dict[str, Any]:
    """Values by name of the `optional` scalar fields that are set, those set to 0 included."""
    return {
        field.name: value
        for field, value in message.ListFields()
        if field.has_presence and field.message_type is None
    }
