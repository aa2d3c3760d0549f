"""The fields of upstream errors, under the names that the client's body has for them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from mesh.errors import MeshError

_SEPARATOR = re.compile(r"[.\[]")

_JSON_TEXT = re.compile(r"_json(?=$|[.\[])")
"""The end of a name whose field holds a part of the body as JSON text, such as `tools_json`."""


class FieldNames(NamedTuple):
    """How the fields of one endpoint's body are called by the services that it calls."""

    fields: Collection[str]
    """The body's fields; an error of any other field names none."""
    renamed: Mapping[str, str]
    """Paths in the body by the services' paths, where they differ; also of all paths inside."""

    def public(self, error: MeshError) -> MeshError:
        """The error with the field's path in the body, in `param` and in the message."""
        if error.param is None:
            return error
        path = self.path(_JSON_TEXT.sub("", error.param))
        if path == error.param and _first_part(path) in self.fields:
            return error
        return error.renamed(path if _first_part(path) in self.fields else None)

    def and_also(self, renamed: Mapping[str, str]) -> FieldNames:
        """These names and those of one request, which take precedence."""
        return self._replace(renamed={**self.renamed, **renamed})

    def path(self, given: str) -> str:
        """The path in the body of a path of the services."""
        ends = [len(given), *(found.start() for found in _SEPARATOR.finditer(given))]
        for end in sorted(ends, reverse=True):
            name = self.renamed.get(given[:end])
            if name is not None:
                return name + given[end:]
        return given


def _first_part(path: str) -> str:
    return _SEPARATOR.split(path, maxsplit=1)[0]
