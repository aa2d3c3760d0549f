"""Broken tokenizer files: each is refused with one line that names the file."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mesh.process.lifecycle import StartupError
from tests.tokenizer.conftest import train_tokenizer
from tokenizer.application import application
from tokenizer.files import TokenizerFiles, files_sha256
from tokenizer.settings import TokenizerSettings
from tokenizer.tokenizer import Tokenizer

BAD_VALUES: list[Any] = [None, -1, 10**30, "\ud800", [], [["a", 1]], {"a": -1}]

TOKENIZER_JSON: dict[str, Any] = json.loads(train_tokenizer().to_str())

CONFIG: dict[str, Any] = {
    "bos_token": {"content": "<s>", "special": True},
    "eos_token": "</s>",
    "added_tokens_decoder": {"0": {"content": "<s>"}},
    "chat_template": [{"name": "default", "template": "{{ messages }}"}],
}


def paths(value: object, path: tuple[Any, ...] = (), depth: int = 3) -> Iterator[tuple[Any, ...]]:
    """Paths of keys and items, at most the first ten and two of each, down to `depth`."""
    if depth == 0:
        return
    keys = list(value)[:10] if isinstance(value, dict) else []
    keys = list(range(min(2, len(value)))) if isinstance(value, list) else keys
    for key in keys:
        yield (*path, key)
        yield from paths(value[key], (*path, key), depth - 1)  # type: ignore[index]


def with_value(content: object, path: tuple[Any, ...], value: object) -> Any:
    changed = copy.deepcopy(content)
    section: Any = changed
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    return changed


def load(**files: object) -> str | None:
    """The error on these files; None if they are accepted. Fails on any other error."""
    contents: Mapping[str, bytes] = {
        f"{name}.json": each if isinstance(each, bytes) else json.dumps(each).encode()
        for name, each in {"tokenizer": TOKENIZER_JSON, **files}.items()
    }
    try:
        Tokenizer("m", TokenizerFiles(contents, files_sha256(contents)))
    except StartupError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map"])
def test_every_field_of_the_configuration_may_be_broken(name: str) -> None:
    """Each key gets each bad value: accepted, or refused in one line."""
    for path in paths(CONFIG, depth=4):
        for bad in BAD_VALUES:
            message = load(**{name: with_value(CONFIG, path, bad)})
            assert message is None or "\n" not in message


def test_every_field_of_the_tokenizer_may_be_broken() -> None:
    """Down to the third level: the library's own errors are refusals too."""
    refused = 0
    for path in paths(TOKENIZER_JSON):
        if "continuing_subword_prefix" in path:
            continue  # the library aborts the process: `mesh.hub.vocabulary` refuses it before
        for bad in BAD_VALUES:
            message = load(tokenizer=with_value(TOKENIZER_JSON, path, bad))
            assert message is None or "\n" not in message
            refused += message is not None
    assert refused > 100


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 100_000, b"null"]
)
@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_config"])
def test_files_that_are_no_json_object_are_named(name: str, content: bytes) -> None:
    """Cut off, a list, no UTF-8, nested too deeply, null."""
    message = load(**{name: content})
    assert message is not None
    assert f"{name}.json" in message
    assert "\n" not in message


def test_a_template_that_cannot_be_compiled_is_named() -> None:
    """Also if it is valid for the template language, but not for the compiler of its code."""
    deep = "{% if a %}" * 200 + "{% endif %}" * 200
    for template in ("{% if %}", deep, "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}"):
        message = load(tokenizer_config={"chat_template": template})
        assert message is None or message.startswith("chat template 'default' of model 'm'")


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
        {
            "model": {
                "type": "BPE",
                "vocab": {"é": 0, "b": 1},
                "merges": [["b", "é"]],
                "continuing_subword_prefix": "x",
            }
        },
        {"added_tokens": [{"id": "0", "content": "a"}]},
    ],
)
async def test_the_service_does_not_start(tmp_path: Path, change: dict[str, Any]) -> None:
    """StartupError, which the process logs as one line before it exits with 3."""
    (tmp_path / "tokenizer.json").write_text(json.dumps({**TOKENIZER_JSON, **change}))
    with pytest.raises(StartupError, match=r"^tokenizer\.json of model [^\n]* is invalid: [^\n]*$"):
        async with application(TokenizerSettings(model=str(tmp_path))):
            pass
