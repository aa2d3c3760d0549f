"""Detects replaced files, such as renewed keys and certificates.

Kubernetes updates a mounted secret by replacing a symbolic link, so the target of each path is
compared.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeAlias

Fingerprint: TypeAlias = tuple[int, int, int] | None


class WatchedFiles:
    """Files, and their state at the last check."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = tuple(paths)
        self._seen = self._fingerprints()

    def changed(self) -> bool:
        """Whether any file was replaced since the last call; False while one is missing."""
        now = self._fingerprints()
        if None in now or now == self._seen:
            return False
        self._seen = now
        return True

    def _fingerprints(self) -> tuple[Fingerprint, ...]:
        return tuple(map(_fingerprint, self._paths))


def _fingerprint(path: str) -> Fingerprint:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
