"""`python -m mesh.hub.download`: downloads a model from the Hugging Face hub into a folder, once.

If the folder already has the verified files, the hub is not contacted, so that pods start without
it. Several processes may run on one volume: the first downloads, the others wait for its lock.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

MARKER = ".weir-download.json"
"""Written last: the model, and the size and SHA-256 of each file."""

TOKENIZER_PATTERNS = (
    "tokenizer*.json",
    "*_config.json",
    "config_sentence_transformers.json",
    "config.json",
    "special_tokens_map.json",
    "*.jinja",
)
PATTERNS: Mapping[str, Sequence[str]] = {
    "tokenizer": TOKENIZER_PATTERNS,
    "model": (
        *TOKENIZER_PATTERNS,
        "*.safetensors",
        "*.safetensors.index.json",
        # Of an encoder.
        "modules.json",
        "*_Pooling/config.json",
    ),
}
"""Data files only: no code, no pickles."""

IGNORED = ("consolidated*", "original/*", "onnx/*", "openvino/*")
"""Copies of the weights in other formats."""

_PIECE_BYTES = 16 * 1024 * 1024


class DownloadError(Exception):
    """The folder does not have the complete model; the message has the reason."""


class DownloadRequest(NamedTuple):
    """The files that the folder must have."""

    model: str
    revision: str
    what: str
    sha256: Mapping[str, str]
    """Expected SHA-256 by file name, in addition to the hub's."""


class File(NamedTuple):
    """A file that was downloaded and verified."""

    size: int
    sha256: str


def download(wanted: DownloadRequest, folder: Path) -> bool:
    """Download the model into `folder`; False if it is there. Blocks. Raises DownloadError."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        present = _present(wanted, folder)
        if present is not None:
            _check_sha256(wanted.sha256, present)
            return False
        files = _fetch(wanted, folder)
        _check_sha256(wanted.sha256, files)
        marker = {
            "model": wanted.model,
            "revision": wanted.revision,
            "what": wanted.what,
            "files": {name: file._asdict() for name, file in files.items()},
        }
        unfinished = folder / f"{MARKER}.new"
        unfinished.write_text(json.dumps(marker, indent=1))
        unfinished.replace(folder / MARKER)
        return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".weir-download.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _present(wanted: DownloadRequest, folder: Path) -> dict[str, File] | None:
    """The files of an earlier download of the same request, if they are complete."""
    try:
        marker = json.loads((folder / MARKER).read_text())
        files = {name: File(**file) for name, file in marker["files"].items()}
        same = all(marker[key] == getattr(wanted, key) for key in ("model", "revision", "what"))
        whole = all((folder / name).stat().st_size == file.size for name, file in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return files if same and whole else None


def _fetch(wanted: DownloadRequest, folder: Path) -> dict[str, File]:
    # Imported here, as it is not needed if the files are there.
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        info = HfApi().model_info(wanted.model, revision=wanted.revision, files_metadata=True)
        patterns = list(PATTERNS[wanted.what])
        siblings = {each.rfilename: each for each in info.siblings or ()}
        names = [name for name in siblings if _matches(name, patterns)]
        # By commit, so that all files are from one revision even if the branch moves.
        snapshot_download(wanted.model, revision=info.sha, local_dir=folder, allow_patterns=names)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DownloadError(
            f"{wanted.model} at {wanted.revision} could not be downloaded from the hub (a gated "
            f"model requires a token in HF_TOKEN): {reason}"
        ) from error
    if not names:
        raise DownloadError(f"{wanted.model} has no file that matches {', '.join(patterns)}")
    files = {}
    for name in names:
        lfs, blob = siblings[name].lfs, siblings[name].blob_id
        files[name] = file = _measure(folder / name)
        if lfs is not None and lfs.sha256 != file.sha256:
            raise DownloadError(f"{name} differs from the hub's file: SHA-256 {file.sha256}")
        if lfs is None and blob is not None and blob != _git_blob_id(folder / name):
            raise DownloadError(f"{name} differs from the hub's file: another git blob id")
    return files


def _matches(name: str, patterns: Sequence[str]) -> bool:
    if any(fnmatch(name, pattern) for pattern in IGNORED):
        return False
    return any(fnmatch(name, pattern) for pattern in patterns)


def _measure(path: Path) -> File:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return File(path.stat().st_size, digest.hexdigest())


def _git_blob_id(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _check_sha256(given: Mapping[str, str], files: Mapping[str, File]) -> None:
    for name, sha256 in given.items():
        if name not in files:
            raise DownloadError(f"--sha256 names {name}, but the model has no such file")
        if files[name].sha256 != sha256:
            raise DownloadError(
                f"{name} has the SHA-256 {files[name].sha256}, but --sha256 requires {sha256}"
            )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; on failure prints the reason and exits with 1."""
    parser = argparse.ArgumentParser(prog="mesh.hub.download", description=__doc__)
    parser.add_argument("--model", required=True, help="hub id, such as Qwen/Qwen3-0.6B")
    parser.add_argument("--revision", default="main", help="commit, tag or branch")
    parser.add_argument("--folder", type=Path, required=True, help="folder to download to")
    parser.add_argument(
        "--what",
        choices=sorted(PATTERNS),
        default="model",
        help="files to download (default: model)",
    )
    parser.add_argument(
        "--sha256",
        action="append",
        default=[],
        metavar="FILE=HEX",
        help="expected SHA-256 of a file; repeatable",
    )
    arguments = parser.parse_args(argv)
    sha256 = dict(each.rsplit("=", 1) for each in arguments.sha256 if "=" in each)
    wanted = DownloadRequest(arguments.model, arguments.revision, arguments.what, sha256)
    try:
        fetched = download(wanted, arguments.folder)
    except DownloadError as error:
        sys.exit(f"download: {error}")
    print(f"{wanted.model}: {'downloaded' if fetched else 'already there'}, {arguments.folder}")


if __name__ == "__main__":
    main()
