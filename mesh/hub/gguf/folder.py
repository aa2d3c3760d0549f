"""Makes a model folder of a GGUF file: derived configuration files, and links to the weights."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from mesh.hub.gguf.config import generation_config, model_config
from mesh.hub.gguf.metadata import Metadata, parts
from mesh.hub.gguf.tokenizer import tokenizer_config, tokenizer_json

_VERSION = 3
"""Increase it when the derived files change, so that older ones are not used."""


def gguf_folder(path: Path) -> Path:
    """A folder with config.json, tokenizer.json and links to the parts of the model at `path`.

    It is kept in the Hugging Face cache (HF_HOME), or in the temporary folder if that cannot be
    written, by path, size and time of change of the file. Several processes may make it at once.
    Blocks. Raises GgufError.
    """
    path = path.resolve()
    files = parts(path)
    cache = _cache_folder()
    status = [(str(each), each.stat().st_size, each.stat().st_mtime_ns) for each in files]
    key = hashlib.sha256(repr((_VERSION, status)).encode()).hexdigest()[:16]
    folder = cache / f"{path.stem}-{key}"
    if folder.is_dir():
        return folder
    unfinished = Path(tempfile.mkdtemp(dir=cache))
    try:
        _write(path, files, unfinished)
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process has made the same one
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write(path: Path, files: list[Path], folder: Path) -> None:
    metadata = Metadata(path)
    contents = {
        "config.json": model_config(metadata),
        "generation_config.json": generation_config(metadata),
        "tokenizer.json": tokenizer_json(metadata),
        "tokenizer_config.json": tokenizer_config(metadata),
    }
    for name, content in contents.items():
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (folder / name).write_text(text, encoding="utf-8")
    for each in files:
        (folder / each.name).symlink_to(each)


def _cache_folder() -> Path:
    from huggingface_hub.constants import HF_HOME  # imported here, as it takes 0.2 s

    for parent in (Path(HF_HOME), Path(tempfile.gettempdir())):
        folder = parent / "weir-gguf"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp())
