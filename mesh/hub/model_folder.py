"""Resolves a model, given as a folder, a GGUF file or a hub id, to a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mesh.hub.gguf.folder import gguf_folder
from mesh.hub.gguf.metadata import GgufError, parts

GGUF_SUFFIX = ".gguf"


class ModelNotFoundError(Exception):
    """No such folder or repository, or the hub is unreachable; the message has the reason."""


def model_folder(model: str, allow_patterns: Sequence[str]) -> Path:
    """The local folder of `model`, with at least the files that match `allow_patterns`.

    A hub id such as `Qwen/Qwen3-0.6B` is downloaded into the Hugging Face cache, with a progress
    bar. Interrupted downloads are resumed. With `HF_HUB_OFFLINE=1` only the cache is used. A GGUF
    file (`model.gguf`, a folder with one, or `owner/name/model.gguf` on the hub) yields a folder
    with the configuration files made of its metadata. Blocks. Raises ModelNotFoundError.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        file = _only_gguf_file(path)
        return path if file is None else _from_gguf(file)
    is_gguf = path.suffix == GGUF_SUFFIX
    if is_gguf and path.is_file():
        return _from_gguf(path)
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1 + is_gguf:
        raise ModelNotFoundError(
            f"model {model!r} is neither a folder, a GGUF file, nor a hub id such as "
            "Qwen/Qwen3-0.6B or owner/name/model.gguf"
        )
    if is_gguf:
        repository, _, name = model.rpartition("/")
        stem = name.rpartition("-00001-of-")[0]
        pattern = f"{stem}-*-of-*{GGUF_SUFFIX}" if stem else name
        return _from_gguf(_from_hub(repository, [pattern]) / name)
    return _from_hub(model, allow_patterns)


def _from_hub(model: str, allow_patterns: Sequence[str]) -> Path:
    # Imported here, as it is not needed for a local folder.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=list(allow_patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelNotFoundError(
            f"model {model!r} is not a folder and could not be downloaded from the hub: {reason}"
        ) from error


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
