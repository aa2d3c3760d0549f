"""The error that validators of request fields raise."""

from __future__ import annotations


class FieldError(ValueError):
    """A request field has a value that its validator rejects.

    `requirement` is the message without the field's name, such as `must be 'text', given "x"`.
    `path` leads from the validated value to the field: empty for the value itself,
    `(0, "type")` for the field `type` of its first item.
    """

    def __init__(self, requirement: str, *path: int | str) -> None:
        super().__init__(requirement)
        self.requirement = requirement
        self.path = path
