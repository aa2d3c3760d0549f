"""The files of the served model that describe its text: configuration, tokenizer, templates."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from mesh.errors import ErrorKind, MeshError
from mesh.text.detokenizer import Decoder

TOKENIZER_FILE = "tokenizer.json"

ARCHIVED = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "*.jinja",
)
"""What a router needs in order to render templates, encode and decode."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Date of every file in the archive, so that equal files give equal archives."""


class Archive(NamedTuple):
    """A zip file and its hexadecimal SHA-256."""

    data: bytes
    sha256: str


class TextModel(NamedTuple):
    """The tokenizer in its two directions."""

    tokenizer: Tokenizer
    decoder: Decoder


class ModelFiles:
    """Reads the files of one folder when they are first needed, in a thread, and keeps them."""

    def __init__(self, folder: Path | None) -> None:
        """None: the model has no files, and no tokenizer."""
        self.folder = folder
        self.config: dict[str, Any] = {} if folder is None else _object_in(folder / "config.json")
        self._lock = asyncio.Lock()
        self._archive: Archive | None = None
        self._text: TextModel | None = None

    @property
    def has_tokenizer(self) -> bool:
        """Whether texts can be encoded and decoded."""
        return self.folder is not None and (self.folder / TOKENIZER_FILE).is_file()

    async def archive(self) -> Archive:
        """The tokenizer's files. Raises MeshError (UNIMPLEMENTED) without a tokenizer."""
        folder = self._folder("GetTokenizer")
        async with self._lock:
            if self._archive is None:
                self._archive = await asyncio.to_thread(_zip, folder)
            return self._archive

    async def text_model(self, field: str) -> TextModel:
        """The tokenizer. Raises MeshError (UNIMPLEMENTED) that names `field` without one."""
        folder = self._folder(field)
        async with self._lock:
            if self._text is None:
                self._text = await asyncio.to_thread(_load, folder)
            return self._text

    def token_id(self, name: str) -> int:
        """An id in config.json, such as `bos_token_id`; 0, which callers ignore, if none."""
        value = self.config.get(name)
        return value if isinstance(value, int) and 0 <= value < 2**31 else 0

    def _folder(self, field: str) -> Path:
        if self.folder is None or not self.has_tokenizer:
            raise MeshError(
                ErrorKind.UNIMPLEMENTED,
                f"{field} needs a tokenizer, and the served model has no {TOKENIZER_FILE}",
                param=field,
            )
        return self.folder


def _load(folder: Path) -> TextModel:
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    # Files may ask for truncation or padding, which suit training.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return TextModel(tokenizer, Decoder(tokenizer))


def _zip(folder: Path) -> Archive:
    paths = {path for pattern in ARCHIVED for path in folder.glob(pattern) if path.is_file()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(paths):
            entry = zipfile.ZipInfo(path.name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    data = buffer.getvalue()
    return Archive(data, hashlib.sha256(data).hexdigest())


def _object_in(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
