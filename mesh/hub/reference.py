"""The name of a model on the hub: `owner/name`, with an optional revision and GGUF file."""

from __future__ import annotations

import re
from typing import NamedTuple

GGUF_SUFFIX = ".gguf"
DEFAULT_REVISION = "main"

_REPOSITORY = r"(?P<repository>[\w.-]+/[\w.-]+)"
_FILE_REVISION = r"(@(?P<revision>refs/[^/@]+/[^/@]+|[^/@]+))?"
"""A branch whose name has slashes would be mistaken for the folder of a file."""

_MODEL = re.compile(rf"{_REPOSITORY}(@(?P<revision>[^@]+))?")
_GGUF_FILE = re.compile(rf"{_REPOSITORY}{_FILE_REVISION}/(?P<file>([^/@]+/)*[^/@]+\.gguf)")


class HubReference(NamedTuple):
    """A repository at a commit, tag or branch, and the GGUF file in it; "" for no file."""

    repository: str
    revision: str = DEFAULT_REVISION
    file: str = ""

    def __str__(self) -> str:
        """As users write it."""
        revision = "" if self.revision == DEFAULT_REVISION else f"@{self.revision}"
        return f"{self.repository}{revision}" + (f"/{self.file}" if self.file else "")


def hub_reference(model: str) -> HubReference | None:
    """The parts of `owner/name[@revision][/folder/file.gguf]`; None for anything else.

    The form is that of the hub's `hf://` URIs.
    """
    is_file = model.endswith(GGUF_SUFFIX)
    match = (_GGUF_FILE if is_file else _MODEL).fullmatch(model)
    if match is None or model.startswith((".", "~")):
        return None
    revision = match["revision"] or DEFAULT_REVISION
    return HubReference(match["repository"], revision, match["file"] if is_file else "")
