"""`python -m mesh.hub.download`: puts a model from the Hugging Face hub into a folder, once.

What is there already and was checked costs no look at the hub, so that a pod starts without it.
Several may run at a time on one volume: the first downloads, the others wait for it.
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
"""Written last: what was downloaded, with the size and SHA-256 of each file."""

TOKENIZER_PATTERNS = (
    "tokenizer*.json",
    "*_config.json",
    "config.json",
    "special_tokens_map.json",
    "*.jinja",
)
PATTERNS: Mapping[str, Sequence[str]] = {
    "tokenizer": TOKENIZER_PATTERNS,
    "model": (*TOKENIZER_PATTERNS, "*.safetensors", "*.safetensors.index.json"),
}
"""Data only: no code, no pickles."""

IGNORED = ("consolidated*", "original/*", "onnx/*", "openvino/*")
"""The same weights in other forms."""

_PIECE_BYTES = 16 * 1024 * 1024


class DownloadError(Exception):
    """There is no whole model in the folder; the message says why."""


class Wanted(NamedTuple):
    """What is to be there."""

    model: str
    revision: str
    what: str
    sha256: Mapping[str, str]
    """By file name, beside what the hub says."""


class File(NamedTuple):
    """A file that was downloaded and checked."""

    size: int
    sha256: str


def download(wanted: Wanted, folder: Path) -> bool:
    """Makes `folder` hold the model; False if it did already. Blocks. Raises DownloadError."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        present = _present(wanted, folder)
        if present is not None:
            _check_given(wanted.sha256, present)
            return False
        files = _fetch(wanted, folder)
        _check_given(wanted.sha256, files)
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


def _present(wanted: Wanted, folder: Path) -> dict[str, File] | None:
    """The files of an earlier download, if it was this one and they are still whole."""
    try:
        marker = json.loads((folder / MARKER).read_text())
        files = {name: File(**file) for name, file in marker["files"].items()}
        same = all(marker[key] == getattr(wanted, key) for key in ("model", "revision", "what"))
        whole = all((folder / name).stat().st_size == file.size for name, file in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return files if same and whole else None


def _fetch(wanted: Wanted, folder: Path) -> dict[str, File]:
    # Imported here: a pod that has its model need not load it.
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        info = HfApi().model_info(wanted.model, revision=wanted.revision, files_metadata=True)
        patterns = list(PATTERNS[wanted.what])
        siblings = {each.rfilename: each for each in info.siblings or ()}
        names = [name for name in siblings if _is_wanted(name, patterns)]
        # By commit, so that a branch that moves in between gives no mixture.
        snapshot_download(wanted.model, revision=info.sha, local_dir=folder, allow_patterns=names)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DownloadError(
            f"{wanted.model} at {wanted.revision} could not be had from the hub (a gated model "
            f"needs a token in HF_TOKEN): {reason}"
        ) from error
    if not names:
        raise DownloadError(f"{wanted.model} has no file of the kinds {', '.join(patterns)}")
    files = {}
    for name in names:
        lfs, blob = siblings[name].lfs, siblings[name].blob_id
        files[name] = file = _measure(folder / name)
        if lfs is not None and lfs.sha256 != file.sha256:
            raise DownloadError(f"{name} is not what the hub has: SHA-256 {file.sha256}")
        if lfs is None and blob is not None and blob != _git_blob_id(folder / name):
            raise DownloadError(f"{name} is not what the hub has: another git blob")
    return files


def _is_wanted(name: str, patterns: Sequence[str]) -> bool:
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


def _check_given(given: Mapping[str, str], files: Mapping[str, File]) -> None:
    for name, sha256 in given.items():
        if name not in files:
            raise DownloadError(f"{name} has a SHA-256 given, but the model has no such file")
        if files[name].sha256 != sha256:
            raise DownloadError(
                f"{name} has the SHA-256 {files[name].sha256}, but {sha256} was asked for"
            )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exits with 1 and a line that says what is wrong."""
    parser = argparse.ArgumentParser(prog="mesh.hub.download", description=__doc__)
    parser.add_argument("--model", required=True, help="hub id, such as Qwen/Qwen3-0.6B")
    parser.add_argument("--revision", default="main", help="commit, tag or branch")
    parser.add_argument("--folder", type=Path, required=True, help="where to put it")
    parser.add_argument("--what", choices=sorted(PATTERNS), default="model")
    parser.add_argument(
        "--sha256", action="append", default=[], metavar="FILE=HEX", help="of a file; repeatable"
    )
    arguments = parser.parse_args(argv)
    sha256 = dict(each.rsplit("=", 1) for each in arguments.sha256 if "=" in each)
    wanted = Wanted(arguments.model, arguments.revision, arguments.what, sha256)
    try:
        fetched = download(wanted, arguments.folder)
    except DownloadError as error:
        sys.exit(f"download: {error}")
    print(f"{wanted.model}: {'downloaded' if fetched else 'already there'}, {arguments.folder}")


if __name__ == "__main__":
    main()
