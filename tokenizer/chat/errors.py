"""The error of a conversation that cannot be rendered.

The worker processes raise it. They do not import `mesh.errors`, because gRPC would double their
memory and the time to start them.
"""

from __future__ import annotations


class RenderError(Exception):
    """The request is invalid; `param` is the field's path in the ChatPrompt."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param
        self.message = message
