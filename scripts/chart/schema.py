"""A JSON schema from commented values, which forbids unknown keys at every level.

No key is required: the templates complete missing ones with their defaults.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from scripts.chart.values import Entry

KUBERNETES = "v1.36.0-local-strict"
"""Version of the Kubernetes API types in the schema."""

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}

Schema = dict[str, Any]


class UntypedKeyError(Exception):
    """The default does not determine a key's type; the message says what to add."""


def build_schema(root: Entry, title: str) -> Schema:
    """The schema of a values.yaml, in JSON Schema draft 7, which Helm 3 supports."""
    builder = _Builder(root)
    schema = builder.schema(root)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": title,
        **schema,
        "definitions": dict(sorted(builder.definitions.items())),
    }


class _Builder:
    def __init__(self, root: Entry) -> None:
        self.definitions: dict[str, Schema] = {}
        self._kubernetes = _kubernetes_types()
        self._entries = {entry.path: entry for entry in root.walk()}

    def schema(self, entry: Entry) -> Schema:
        """The schema of a key."""
        if "like" in entry.annotation:
            return {"description": entry.description, **self._like(entry.annotation["like"])}
        return self._own(entry)

    def _like(self, path: str) -> Schema:
        """The schema of overrides, which set some of the keys."""
        name = f"values.{path}"
        if name not in self.definitions:
            self.definitions[name] = {}  # ends the recursion if it refers to itself
            self.definitions[name] = self._own(self._entries[path])
        return {"$ref": f"#/definitions/{name}"}

    def _own(self, entry: Entry) -> Schema:
        schema: Schema = {"description": entry.description} if entry.description else {}
        annotation = self._resolved(entry.annotation)
        if "$ref" in annotation:
            return schema | annotation
        if "additionalProperties" in annotation:
            return schema | {"type": "object"} | annotation
        if isinstance(entry.value, dict):
            schema |= {
                "type": "object",
                "additionalProperties": False,
                "properties": {key: self.schema(child) for key, child in entry.children.items()},
            }
        elif isinstance(entry.value, list):
            schema |= {"type": "array", "items": self._items(entry, annotation)}
            annotation.pop("items", None)
        elif "type" not in annotation:
            kind = _TYPES.get(type(entry.value))
            if kind is None:
                raise UntypedKeyError(f"{entry.path}: add @schema {{type: …}} above it")
            schema["type"] = kind
        return schema | annotation

    def _items(self, entry: Entry, annotation: Schema) -> Schema:
        given: Schema = annotation.get("items", {})
        if entry.item is not None:
            return self._own(entry.item) | given
        if not given:
            raise UntypedKeyError(f"{entry.path}: add @schema {{items: …}} above it")
        return given

    def _resolved(self, annotation: Schema) -> Schema:
        """The annotation with `k8s` names replaced by references to the embedded types."""
        resolved: Schema = {}
        for key, value in annotation.items():
            if key == "k8s":
                resolved["$ref"] = self._embed(f"io.k8s.api.{value}")
            else:
                resolved[key] = self._resolved(value) if isinstance(value, dict) else value
        return resolved

    def _embed(self, name: str) -> str:
        if name not in self.definitions:
            self.definitions[name] = {}
            self.definitions[name] = self._embedded(self._kubernetes[name])
        return f"#/definitions/{name}"

    def _embedded(self, schema: Any) -> Any:
        if isinstance(schema, list):
            return [self._embedded(each) for each in schema]
        if not isinstance(schema, dict):
            return schema
        kept: Schema = {}
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                kept[key] = self._embed(value.rpartition("/")[2])
            elif not _is_ignored(key, value):
                kept[key] = self._embedded(value)
        if "object" in (kept.get("type") or ()) and "properties" not in kept:
            kept.setdefault("additionalProperties", False)
        return kept


def _is_ignored(key: str, value: Any) -> bool:
    """True for keywords that Helm's validator ignores, such as the format int64."""
    return key.startswith("x-") or (key in ("description", "format") and isinstance(value, str))


def _kubernetes_types() -> dict[str, Schema]:
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / KUBERNETES
    types: dict[str, Schema] = json.loads((folder / "_definitions.json").read_text())["$defs"]
    return types
