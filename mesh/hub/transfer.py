"""Downloads a repository's files: the check of the disk, and large files that can be continued.

`huggingface_hub` downloads the small files. It discards the part of a file that a process which
ends has downloaded, so large files are downloaded here, into a file with a fixed name.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from mesh.hub.problems import Destination, HubError
from mesh.hub.reference import HubReference

logger = logging.getLogger(__name__)

MAX_LARGE_BYTES = 50 * 1000**3
"""Above it the hub serves a file only by its Xet protocol, which `huggingface_hub` speaks."""

PARALLEL_FILES = 4
_PARTIAL_SUFFIX = ".weir-partial"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""Errors of file systems without locks."""


class LargeFile(NamedTuple):
    """A file with a SHA-256, and where to write it."""

    name: str
    size: int
    sha256: str
    target: Path

    @property
    def partial(self) -> Path:
        """What earlier processes have downloaded of it."""
        return self.target.with_name(f".{self.sha256}{_PARTIAL_SUFFIX}")

    @property
    def num_missing(self) -> int:
        """Bytes to download."""
        if _size(self.target) == self.size:
            return 0
        return self.size - min(_size(self.partial), self.size)


def check_space(wanted: HubReference, num_bytes: int, destination: Destination) -> None:
    """Raises HubError if the disk of the folder has less than `num_bytes` free bytes."""
    folder = destination.folder
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise HubError(
            f"{wanted} needs {_gigabytes(num_bytes)} more in {folder}, which has "
            f"{_gigabytes(free)} free: free some space, or {destination.remedy} on a larger disk"
        )


def fetch_large(wanted: HubReference, commit: str, files: Sequence[LargeFile]) -> None:
    """Downloads the files that are missing, and verifies them. Blocks.

    Raises HubError if a file differs from the hub's, and the errors of the hub's client.
    """
    with ThreadPoolExecutor(PARALLEL_FILES) as threads:
        list(threads.map(lambda file: _fetch(wanted, commit, file), files))


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, **fields: str) -> Iterator[None]:
    """Holds an exclusive lock on a file; waits while another process does. Logs that with fields.

    On a file system without locks several processes download at once: the checksum finds the
    damage, and the file is downloaded again. `huggingface_hub` locks small files itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            _lock(lock, fields)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning("file system has no locks", extra={**fields, "error": str(error)})
        yield


def _lock(file: IO[str], fields: Mapping[str, str]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("waiting for another process's download", extra=fields)
        fcntl.flock(file, fcntl.LOCK_EX)


def _fetch(wanted: HubReference, commit: str, file: LargeFile) -> None:
    if _size(file.target) == file.size:
        return
    file.target.parent.mkdir(parents=True, exist_ok=True)
    continued = _size(file.partial) > 0
    _download(wanted, commit, file)
    if sha256_of(file.partial) != file.sha256 and continued:
        logger.warning("continued download is damaged, starting again", extra={"file": file.name})
        file.partial.unlink()
        _download(wanted, commit, file)
    if (found := sha256_of(file.partial)) != file.sha256:
        file.partial.unlink()
        raise HubError(f"{file.name} differs from the hub's file: SHA-256 {found}; try again")
    file.partial.replace(file.target)


def _download(wanted: HubReference, commit: str, file: LargeFile) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented

    if _size(file.partial) > file.size:
        file.partial.unlink()
    with file.partial.open("ab") as partial:
        http_get(
            hf_hub_url(wanted.repository, file.name, revision=commit),
            partial,
            resume_size=partial.tell(),
            headers=build_hf_headers(),
            expected_size=file.size,
            displayed_filename=file.name,
        )


def _size(path: Path) -> int:
    """0 for a missing file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
