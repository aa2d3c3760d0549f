"""The response object: what the request asked for, and what has been made of it so far."""

from __future__ import annotations

import secrets
import time

from gateway.http.json_text import encode_line
from gateway.observability.usage_total import UsageTotal
from gateway.responses.items import Json
from gateway.schemas.responses.request import ResponsesRequest
from gateway.schemas.responses.tools import FILE_SEARCH, FunctionTool, SearchTool
from mesh.errors import ErrorKind, MeshError
from mesh.protocol.finish import FinishReason

_ERROR_CODES = {
    ErrorKind.OVERLOADED: "rate_limit_exceeded",
    ErrorKind.INVALID_REQUEST: "invalid_prompt",
}
"""OpenAI's codes of failed responses; all other errors are `server_error`."""


def new_response_id() -> str:
    """A new id that cannot be guessed."""
    return f"resp_{secrets.token_hex(24)}"


class ResponseObject:
    """One response, in progress or complete."""

    def __init__(self, body: ResponsesRequest) -> None:
        self.id = new_response_id()
        self.status = "queued" if body.background else "in_progress"
        self.model = body.model
        self.output: list[Json] = []
        self.store = body.store
        self._body = body
        self._created_at = int(time.time())
        self._completed_at: int | None = None
        self._usage: Json | None = None
        self._error: Json | None = None
        self._incomplete: Json | None = None
        self._asked = encode_line(_asked(body))[1:]

    def finish(self, reason: FinishReason, usage: UsageTotal) -> None:
        """Record the end of the generation."""
        self._usage = _usage(usage)
        if reason is FinishReason.LENGTH:
            self.status = "incomplete"
            self._incomplete = {"reason": "max_output_tokens"}
        else:
            self.status = "completed"
            self._completed_at = int(time.time())

    def fail(self, error: MeshError) -> None:
        """Record a failure."""
        self.status = "failed"
        code = _ERROR_CODES.get(error.kind, "server_error")
        self._error = {"code": code, "message": error.message}

    def cancel(self) -> None:
        """Record that the client has cancelled it."""
        self.status = "cancelled"

    def encoded(self) -> str:
        """The object in OpenAI's format, as JSON on one line."""
        made = encode_line(
            {
                "id": self.id,
                "object": "response",
                "created_at": self._created_at,
                "completed_at": self._completed_at,
                "status": self.status,
                "error": self._error,
                "incomplete_details": self._incomplete,
                "model": self.model,
                "output": self.output,
                "usage": self._usage,
                "store": self.store,
            }
        )
        return f"{made[:-1]},{self._asked}"


def _asked(body: ResponsesRequest) -> Json:
    """The fields of the request that the response repeats."""
    return {
        "instructions": body.instructions,
        "previous_response_id": body.previous_response_id,
        "background": body.background,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata,
        "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning": {"effort": body.reasoning.effort, "summary": body.reasoning.summary},
        "service_tier": "default",
        "temperature": body.temperature,
        "text": {"format": _format(body)},
        "tool_choice": _choice(body),
        "tools": [_tool(t) for t in body.tools if isinstance(t, FunctionTool | SearchTool)],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": body.truncation,
        "user": body.user,
    }


def _format(body: ResponsesRequest) -> Json:
    format = body.text.format
    if format.type != "json_schema":
        return {"type": format.type}
    return {
        "type": format.type,
        "name": format.name,
        "description": format.description,
        "schema": format.schema_,
        "strict": format.strict,
    }


def _tool(tool: FunctionTool | SearchTool) -> Json:
    if isinstance(tool, FunctionTool):
        return {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
            "strict": tool.strict,
        }
    if tool.type == "file_search":
        return {"type": tool.type, "vector_store_ids": []}
    return {"type": tool.type}


def _choice(body: ResponsesRequest) -> object:
    choice = body.tool_choice
    if choice.allowed is not None:
        tools = [{"type": "function", "name": name} for name in sorted(choice.allowed) if name]
        return {"type": "allowed_tools", "mode": choice.mode, "tools": tools}
    if choice.search:
        # The SDKs' types of this field know the search by the name of its preview alone.
        return {"type": "file_search" if choice.search == FILE_SEARCH else "web_search_preview"}
    return {"type": "function", "name": choice.name} if choice.name else choice.mode


def _usage(usage: UsageTotal) -> Json:
    prompt_tokens, completion_tokens = usage.prompt_tokens or 0, usage.completion_tokens
    return {
        "input_tokens": prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": prompt_tokens + completion_tokens,
    }
