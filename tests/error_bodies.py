"""Whether an error body is consistent: `param` and the message name the same field."""

from __future__ import annotations

import re
from typing import Any

CONTEXT = "This model's maximum context length is "


def disagreement(error: dict[str, Any]) -> str | None:
    """What is wrong with `param` beside the message; None if they agree.

    A message begins with the field's path. One about the context length begins as OpenAI's, and
    names the field later, or the completion where that is too long.
    """
    param, message = error["param"], error["message"]
    if param is None:
        named = re.match(r"[a-z_]+(?:\[\d+\]|\.[a-z_]+)+ ", message)
        return f"the message names {named[0]}, param is null" if named else None
    rest = message.removeprefix(param)
    if message.startswith(param) and not re.match(r"[\w\[]|\.\w", rest):
        return None
    if message.startswith(CONTEXT):
        whole = re.search(rf"(?<![\w.]){re.escape(param)}(?![\w\[])", message)
        if whole or (param.startswith("max_") and "completion" in message):
            return None
    if error["code"] == "model_not_found" and param == "model":
        return None  # OpenAI's message names the model, not the field
    return f"param is {param}, the message {message[:200]!r}"
