"""The files of a repository at one commit, and which of them a service needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from mesh.hub.problems import HubError
from mesh.hub.reference import GGUF_SUFFIX, HubReference

_IGNORED = ("consolidated*", "original/*", "onnx/*", "openvino/*")
"""Copies of the weights in other formats."""

_WEIGHTS_SUFFIX = ".safetensors"
_INDEX, _WHOLE = "model.safetensors.index.json", "model.safetensors"
_SHARD = re.compile(r".+\d+-of-\d+\.safetensors")

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_OTHER_SUFFIXES = (".h5", ".msgpack", ".onnx", ".tflite", ".npz", ".mlmodel")

_NAMED_FILES = 4
"""Most files that a message names."""


class RemoteFile(NamedTuple):
    """Size in bytes and checksum of a file on the hub."""

    size: int
    sha256: str
    """Hexadecimal; "" for the small files that are in git itself."""
    blob_id: str
    """Git's hexadecimal SHA-1 of the object; "" if the hub does not report it."""


class Listing(NamedTuple):
    """All files of a repository at one commit."""

    commit: str
    files: Mapping[str, RemoteFile]


def read_listing(wanted: HubReference) -> Listing:
    """Asks the hub. Blocks. Raises the errors of its client."""
    from huggingface_hub import HfApi, constants  # imported here, as it takes 0.2 s

    info = HfApi().model_info(
        wanted.repository,
        revision=wanted.revision,
        files_metadata=True,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
    )
    files = {}
    for each in info.siblings or ():
        sha256 = "" if each.lfs is None else each.lfs.sha256
        files[each.rfilename] = RemoteFile(each.size or 0, sha256, each.blob_id or "")
    return Listing(info.sha or "", files)


def needed_files(wanted: HubReference, names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that match a pattern, without further copies of the weights.

    A pattern without a slash matches no file in a folder. Raises HubError if no file matches, or
    the patterns ask for weights and the repository has them in other formats only.
    """
    found = [name for name in names if _matches(name, patterns)]
    if _INDEX in found:
        found = [name for name in found if not _is_weights(name) or _SHARD.fullmatch(name)]
    elif _WHOLE in found:
        found = [name for name in found if not _is_weights(name) or name == _WHOLE]
    wants_weights = any(_is_weights(pattern) for pattern in patterns)
    if wants_weights and not any(map(_is_weights, found)):
        raise HubError(_without_weights(wanted, names))
    if not found:
        raise HubError(_without_match(wanted, names, patterns))
    return found


def unserved_weights(names: Sequence[str]) -> str:
    """The formats of weights without safetensors, and what to do; "" without such files."""
    if pickles := [name for name in names if name.endswith(_PICKLE_SUFFIXES)]:
        return (
            f"has weights as pickles only ({_some(pickles)}), which can run code when they are "
            "loaded: convert them to safetensors"
        )
    if others := [name for name in names if name.endswith(_OTHER_SUFFIXES)]:
        return (
            f"has weights in formats that are not served ({_some(others)}): convert them to "
            "safetensors"
        )
    return ""


def _without_weights(wanted: HubReference, names: Sequence[str]) -> str:
    if files := [name for name in names if name.endswith(GGUF_SUFFIX)]:
        example = wanted._replace(file=files[0])
        return f"{wanted} has GGUF files: name one of them, such as {example} ({_some(files)})"
    if problem := unserved_weights(names):
        return (
            f"{wanted} {problem}; https://huggingface.co/spaces/safetensors/convert opens a pull "
            f"request with them, to be named as {wanted.repository}@refs/pr/NUMBER"
        )
    return f"{wanted} has no *.safetensors or *.gguf file: choose a model with weights"


def _without_match(wanted: HubReference, names: Sequence[str], patterns: Sequence[str]) -> str:
    if not wanted.file:
        return f"{wanted} has no file that matches {', '.join(patterns)}"
    files = [name for name in names if name.endswith(GGUF_SUFFIX)]
    found = _some(files) if files else "it has none"
    repository = wanted._replace(file="")
    return f"{repository} has no file {wanted.file}: name one of its GGUF files ({found})"


def _matches(name: str, patterns: Sequence[str]) -> bool:
    if any(fnmatchcase(name, pattern) for pattern in _IGNORED):
        return False
    folders = name.count("/")
    return any(pattern.count("/") == folders and fnmatchcase(name, pattern) for pattern in patterns)


def _is_weights(name: str) -> bool:
    return name.endswith(_WEIGHTS_SUFFIX)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED_FILES
    return ", ".join(names[:_NAMED_FILES]) + (f" and {more} more" if more > 0 else "")
