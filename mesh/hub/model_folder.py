"""Resolves a model, given as a folder or a Hugging Face hub id, to a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class ModelNotFoundError(Exception):
    """No such folder or repository, or the hub is unreachable; the message has the reason."""


def model_folder(model: str, allow_patterns: Sequence[str]) -> Path:
    """The local folder of `model`, with at least the files that match `allow_patterns`.

    A hub id such as `Qwen/Qwen3-0.6B` is downloaded into the Hugging Face cache, with a progress
    bar. Interrupted downloads are resumed. With `HF_HUB_OFFLINE=1` only the cache is used. Blocks.
    Raises ModelNotFoundError.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ModelNotFoundError(
            f"model {model!r} is neither a folder nor a hub id such as Qwen/Qwen3-0.6B"
        )

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
