"""How much memory this process may still take: what the container really has left."""

from __future__ import annotations

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def free_memory(cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> int:
    """Bytes: what the machine has available, cut by the cgroup's limit (version 2)."""
    available = _stat(meminfo, "MemAvailable:") * 1024
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        # The kernel drops cached file pages before it kills: the weights that were just read
        # from disk are such pages, and would look like memory that is gone.
        cached = sum(_stat(cgroup / "memory.stat", name) for name in _FILE_PAGES)
    except (OSError, ValueError):
        return available
    return min(available, max(limit - max(used - cached, 0), 0))


_FILE_PAGES = ("inactive_file", "active_file")


def _stat(path: Path, name: str) -> int:
    """The number behind `name`; 0 where it is not listed."""
    for line in path.read_text().splitlines():
        first, *rest = line.split()
        if first == name:
            return int(rest[0])
    return 0
