"""Reads special tokens and chat templates from a tokenizer's configuration files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath

from mesh.process.lifecycle import StartupError
from tokenizer.chat.prompt_format import DEFAULT_TEMPLATE
from tokenizer.files import CONFIG_FILE, NAMED_TEMPLATES, SPECIAL_TOKENS_FILE, TEMPLATE_FILE

SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""The special tokens that are variables in chat templates, as in transformers."""


def special_tokens(contents: Mapping[str, bytes]) -> dict[str, str]:
    """The model's named special tokens, such as `{"eos_token": "<|im_end|>"}`."""
    config = read_object(contents, CONFIG_FILE)
    # A config with added_tokens_decoder is complete; only older ones need the second file.
    if "added_tokens_decoder" not in config:
        config = {**config, **read_object(contents, SPECIAL_TOKENS_FILE)}
    tokens: dict[str, str] = {}
    for name in SPECIAL_TOKEN_NAMES:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            tokens[name] = content
    return tokens


def template_sources(contents: Mapping[str, bytes]) -> dict[str, str]:
    """The chat templates by name; empty if the model has none.

    Template files take precedence over tokenizer_config.json. Raises StartupError if a template
    is not a string.
    """
    sources: dict[str, str] = {}
    for name in contents:
        path = PurePosixPath(name)
        if name == TEMPLATE_FILE:
            sources[DEFAULT_TEMPLATE] = _text(contents, name)
        elif path.parent.name == NAMED_TEMPLATES:
            sources[path.stem] = _text(contents, name)
    if sources:
        return sources
    value = read_object(contents, CONFIG_FILE).get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT_TEMPLATE: value}
    if isinstance(value, list) and all(map(_is_named_template, value)):
        return {item["name"]: item["template"] for item in value}
    raise StartupError(
        f"chat_template in {CONFIG_FILE} must be a string or a list of named templates"
    )


def read_object(contents: Mapping[str, bytes], name: str) -> dict[str, object]:
    """The JSON object in a file; empty if the file does not exist. Raises StartupError."""
    if name not in contents:
        return {}
    try:
        value = json.loads(contents[name])
    except (ValueError, RecursionError) as error:
        raise StartupError(f"{name} must be JSON: {error}") from error
    if not isinstance(value, dict):
        raise StartupError(f"{name} must be a JSON object")
    return value


def _is_named_template(item: object) -> bool:
    return isinstance(item, dict) and all(
        isinstance(item.get(key), str) for key in ("name", "template")
    )


def _text(contents: Mapping[str, bytes], name: str) -> str:
    try:
        return contents[name].decode()
    except UnicodeDecodeError as error:
        raise StartupError(f"{name} must be UTF-8: {error}") from error
