"""Models in the Hugging Face cache (HF_HOME), downloaded when they are missing."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mesh.hub.problems import Destination, HubError, explained
from mesh.hub.reference import HubReference
from mesh.hub.repository import Listing, RemoteFile, needed_files, read_listing
from mesh.hub.transfer import MAX_LARGE_BYTES, LargeFile, check_space, fetch_large, locked

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")


def cached_model(wanted: HubReference, patterns: Sequence[str]) -> Path:
    """The folder in the cache with the files that match `patterns`. Blocks. Raises HubError.

    Missing files are downloaded, with a progress bar; what an interrupted process has downloaded is
    kept. The hub is not contacted for a complete commit, or with HF_HUB_OFFLINE=1; if it cannot be
    used, a complete model of the cache is served. Several processes may call it at once.
    """
    from huggingface_hub import constants  # imported here, as it takes 0.2 s

    cache = Path(constants.HF_HUB_CACHE)
    destination = Destination(cache, "set HF_HOME to a folder")
    is_offline = constants.is_offline_mode()
    with explained(wanted, destination):
        if is_offline or _COMMIT.fullmatch(wanted.revision):
            folder = _complete_folder(wanted, patterns)
            if folder is not None:
                return folder
        if is_offline:
            raise HubError(
                f"the cache {cache} does not have all files of it, and HF_HUB_OFFLINE forbids "
                "downloads: unset it, or copy the model to a folder and name that"
            )
        try:
            with explained(wanted, destination):
                listing = read_listing(wanted)
        except HubError as error:
            folder = _complete_folder(wanted, patterns)
            if folder is None:
                raise
            fields = {"model": str(wanted), "reason": str(error)}
            logger.warning("hub not usable, serving the cached model", extra=fields)
            return folder
        return _download(wanted, listing, patterns, destination)


def _download(
    wanted: HubReference, listing: Listing, patterns: Sequence[str], destination: Destination
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.file_download import repo_folder_name

    names = needed_files(wanted, list(listing.files), patterns)
    folder_name = repo_folder_name(repo_id=wanted.repository, repo_type="model")
    cache = destination.folder
    blobs = cache / folder_name / "blobs"
    files = {name: listing.files[name] for name in names}
    large = [
        LargeFile(name, file.size, file.sha256, blobs / file.sha256)
        for name, file in files.items()
        if is_large(file)
    ]
    if any(file.num_missing for file in large):
        lock = cache / ".locks" / folder_name / "weir.lock"
        with locked(lock, model=str(wanted)):
            # Under the lock, as another process may have filled the disk with the same files.
            check_space(wanted, _num_missing(files, large, blobs), destination)
            fetch_large(wanted, listing.commit, large)
    else:
        check_space(wanted, _num_missing(files, large, blobs), destination)
    # By the name of the revision, so that the cache notes its commit for offline use.
    return Path(
        snapshot_download(wanted.repository, revision=wanted.revision, allow_patterns=names)
    )


def is_large(file: RemoteFile) -> bool:
    """Whether the file is downloaded so that it can be continued, and has a SHA-256."""
    return bool(file.sha256) and 0 < file.size <= MAX_LARGE_BYTES


def _num_missing(files: Mapping[str, RemoteFile], large: Sequence[LargeFile], blobs: Path) -> int:
    """Bytes to download."""
    others = (file for file in files.values() if not is_large(file))
    small = sum(
        file.size for file in others if not (blobs / (file.sha256 or file.blob_id)).exists()
    )
    return small + sum(file.num_missing for file in large)


def _complete_folder(wanted: HubReference, patterns: Sequence[str]) -> Path | None:
    """The folder in the cache if it has all files; None otherwise. No request."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import (
        CachedRepoTreeNotFoundError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
    )

    repository, revision = wanted.repository, wanted.revision
    try:
        tree = get_cached_repo_tree(repository, revision=revision)
        names = needed_files(wanted, [file.path for file in tree], patterns)
    except CachedRepoTreeNotFoundError:
        names = list(patterns)  # written by another program: its files cannot be checked
    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=names, local_files_only=True
        )
    except (LocalEntryNotFoundError, IncompleteSnapshotError):
        return None
    return Path(folder)
