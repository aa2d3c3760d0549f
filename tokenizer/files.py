"""Reads the files of a tokenizer, and computes the SHA-256 that identifies them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mesh.hub.model_folder import ModelNotFoundError, model_folder
from mesh.process.lifecycle import StartupError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
NAMED_TEMPLATES = "additional_chat_templates"
"""Folder of additional templates, `NAME.jinja`, as written by transformers."""

FILE_PATTERNS = (
    TOKENIZER_FILE,
    CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    TEMPLATE_FILE,
    f"{NAMED_TEMPLATES}/*.jinja",
    "generation_config.json",
    "config_sentence_transformers.json",
)


class TokenizerFiles(NamedTuple):
    """File contents by name, sorted by name, and the SHA-256 over names and contents."""

    contents: Mapping[str, bytes]
    sha256: str


def read_files(model: str) -> TokenizerFiles:
    """Reads the files that match `FILE_PATTERNS` in a folder or a hub repository. Blocks.

    Raises StartupError if the model is not found or has no tokenizer.json.
    """
    try:
        folder = model_folder(model, FILE_PATTERNS)
    except ModelNotFoundError as error:
        raise StartupError(str(error)) from error
    contents = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in _matching(folder)
    }
    if TOKENIZER_FILE not in contents:
        raise StartupError(
            f"model {model!r} has no {TOKENIZER_FILE}; models with only a slow tokenizer "
            f"(tokenizer.model, vocab.txt) must be converted first"
        )
    return TokenizerFiles(contents, files_sha256(contents))


def files_sha256(contents: Mapping[str, bytes]) -> str:
    """Hexadecimal SHA-256 over the files by name: name, NUL, decimal length, NUL, content."""
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(f"{name}\0{len(contents[name])}\0".encode())
        digest.update(contents[name])
    return digest.hexdigest()


def _matching(folder: Path) -> list[Path]:
    found = [path for pattern in FILE_PATTERNS for path in folder.glob(pattern) if path.is_file()]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())
