"""Notices that files have been replaced: keys and certificates are renewed while we run.

Kubernetes replaces a mounted secret by swapping a symbolic link, so what a path leads to is
looked at, not the path.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeAlias

Fingerprint: TypeAlias = tuple[int, int, int] | None


class WatchedFiles:
    """Some files, as they were when last looked at."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = tuple(paths)
        self._seen = self._look()

    def changed(self) -> bool:
        """Whether any is another file now than at the last call; a missing one is not news."""
        now = self._look()
        if None in now or now == self._seen:
            return False
        self._seen = now
        return True

    def _look(self) -> tuple[Fingerprint, ...]:
        return tuple(map(_fingerprint, self._paths))


def _fingerprint(path: str) -> Fingerprint:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
