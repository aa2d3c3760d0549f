"""Finds a model's files: a folder as it stands, or a Hugging Face hub id, downloaded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class ModelNotFoundError(Exception):
    """There is no such folder and no such repository, or no way to it; the message says which."""


def model_folder(model: str, allow_patterns: Sequence[str]) -> Path:
    """The local folder of `model`, with at least the files that match `allow_patterns`.

    A hub id such as `Qwen/Qwen3-0.6B` is downloaded into the Hugging Face cache, with a progress
    bar. A broken connection is taken up where it broke, and whole files of an earlier try are
    kept; with `HF_HUB_OFFLINE=1` only the cache is used and nobody is asked. Blocks.
    Raises ModelNotFoundError.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ModelNotFoundError(
            f"model {model!r} is neither a folder nor a hub id such as Qwen/Qwen3-0.6B"
        )

    # Imported here: a service that serves a local folder need not load it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=list(allow_patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelNotFoundError(
            f"model {model!r} is no folder here and could not be had from the hub: {reason}"
        ) from error
