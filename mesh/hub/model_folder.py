"""Resolves a model, given as a folder, a GGUF file or a hub id, to a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mesh.hub.gguf.folder import gguf_folder
from mesh.hub.gguf.metadata import GgufError, parts
from mesh.hub.hub_cache import cached_model
from mesh.hub.problems import HubError
from mesh.hub.reference import GGUF_SUFFIX, HubReference, hub_reference


class ModelNotFoundError(Exception):
    """No such folder or repository, or the hub is unreachable; the message has the reason."""


def model_folder(model: str, allow_patterns: Sequence[str]) -> Path:
    """The local folder of `model`, with at least the files that match `allow_patterns`.

    A hub id such as `Qwen/Qwen3-0.6B`, or `Qwen/Qwen3-0.6B@REVISION`, is downloaded into the
    Hugging Face cache, see `mesh.hub.hub_cache`. A GGUF file (`model.gguf`, a folder with one, or
    `owner/name/model.gguf` on the hub) yields a folder with the configuration files made of its
    metadata. Blocks. Raises ModelNotFoundError.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        file = _only_gguf_file(path)
        return path if file is None else _from_gguf(file)
    if path.suffix == GGUF_SUFFIX and path.is_file():
        return _from_gguf(path)
    wanted = hub_reference(model)
    if path.is_absolute() or wanted is None:
        raise ModelNotFoundError(
            f"model {model!r} is neither a folder, a GGUF file, nor a hub id such as "
            "Qwen/Qwen3-0.6B, owner/name@revision or owner/name/model.gguf"
        )
    if wanted.file:
        return _from_gguf(_from_hub(wanted, [_gguf_pattern(wanted.file)]) / wanted.file)
    return _from_hub(wanted, allow_patterns)


def _from_hub(wanted: HubReference, patterns: Sequence[str]) -> Path:
    try:
        return cached_model(wanted, patterns)
    except HubError as error:
        raise ModelNotFoundError(f"model '{wanted}' is not a folder, and {error}") from error


def _gguf_pattern(file: str) -> str:
    """The names of all parts of a GGUF file."""
    stem = file.rpartition("-00001-of-")[0]
    return f"{stem}-*-of-*{GGUF_SUFFIX}" if stem else file


def _from_gguf(path: Path) -> Path:
    if not path.is_file():
        raise ModelNotFoundError(f"{path.name} is not in the repository")
    try:
        return gguf_folder(path)
    except GgufError as error:
        raise ModelNotFoundError(str(error)) from error


def _only_gguf_file(folder: Path) -> Path | None:
    """The model in a folder that has nothing but GGUF files; None for any other folder.

    Raises ModelNotFoundError if the folder has several models.
    """
    if (folder / "config.json").exists() or (folder / "tokenizer.json").exists():
        return None
    files = sorted(folder.glob(f"*{GGUF_SUFFIX}"))
    if not files:
        return None
    try:
        if set(parts(files[0])) != set(files):
            names = ", ".join(each.name for each in files[:8])
            raise ModelNotFoundError(f"{folder} has several models, name one of them: {names}")
    except GgufError as error:
        raise ModelNotFoundError(str(error)) from error
    return files[0]
