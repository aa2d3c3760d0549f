"""`python -m mesh.hub.download`: downloads a model from the Hugging Face hub into a folder, once.

If the folder already has the verified files, the hub is not contacted, so that pods start without
it. Several processes may run on one volume: the first downloads, the others wait for its lock.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mesh.hub.hub_cache import is_large
from mesh.hub.problems import Destination, HubError, explained
from mesh.hub.reference import DEFAULT_REVISION, HubReference
from mesh.hub.repository import RemoteFile, needed_files, read_listing
from mesh.hub.transfer import LargeFile, check_space, fetch_large, locked, sha256_of

MARKER = ".weir-download.json"
"""Written last: the model, and the size and SHA-256 of each file."""

TOKENIZER_PATTERNS = (
    "tokenizer*.json",
    "*_config.json",
    "config_sentence_transformers.json",
    "config.json",
    "special_tokens_map.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
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
    with locked(folder / ".weir-download.lock", model=wanted.model):
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
    reference = HubReference(wanted.model, wanted.revision)
    try:
        destination = Destination(folder, "set --folder to a folder")
        with explained(reference, destination):
            return _fetch_files(reference, PATTERNS[wanted.what], destination)
    except HubError as error:
        raise DownloadError(str(error)) from error


def _fetch_files(
    wanted: HubReference, patterns: Sequence[str], destination: Destination
) -> dict[str, File]:
    """Downloads and verifies the files; those of one commit, even if the branch moves."""
    from huggingface_hub import snapshot_download  # imported here, as it takes 0.2 s

    folder = destination.folder
    listing = read_listing(wanted)
    names = needed_files(wanted, list(listing.files), patterns)
    remote = {name: listing.files[name] for name in names}
    large = [
        LargeFile(name, file.size, file.sha256, folder / name)
        for name, file in remote.items()
        if is_large(file)
    ]
    for file in large:
        if file.target.exists() and sha256_of(file.target) != file.sha256:
            file.target.unlink()  # of another revision
    small = [name for name in names if not is_large(remote[name])]
    num_small = sum(remote[name].size for name in small if not (folder / name).exists())
    check_space(wanted, num_small + sum(file.num_missing for file in large), destination)
    fetch_large(wanted, listing.commit, large)
    if small:
        snapshot_download(
            wanted.repository, revision=listing.commit, local_dir=folder, allow_patterns=small
        )
    files = {file.name: File(file.size, file.sha256) for file in large}
    return files | {name: _verified(name, remote[name], folder / name) for name in small}


def _verified(name: str, remote: RemoteFile, path: Path) -> File:
    """Raises HubError if the file differs from the hub's."""
    file = File(path.stat().st_size, sha256_of(path))
    if remote.sha256 and remote.sha256 != file.sha256:
        raise HubError(f"{name} differs from the hub's file: SHA-256 {file.sha256}")
    if not remote.sha256 and remote.blob_id and remote.blob_id != _git_blob_id(path):
        raise HubError(f"{name} differs from the hub's file: another git blob id")
    return file


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
    parser.add_argument("--revision", default=DEFAULT_REVISION, help="commit, tag or branch")
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
