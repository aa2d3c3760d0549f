"""The memory that this process can still allocate within its container's limit."""

from __future__ import annotations

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def free_memory(cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> int:
    """The machine's available memory in bytes, capped by the limit of the cgroup (version 2)."""
    available = _stat(meminfo, "MemAvailable:") * 1024
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        # The kernel evicts cached file pages before it kills a process. The weights that were just
        # read from disk are such pages, so they count as free.
        cached = sum(_stat(cgroup / "memory.stat", name) for name in _FILE_PAGES)
    except (OSError, ValueError):
        return available
    return min(available, max(limit - max(used - cached, 0), 0))


_FILE_PAGES = ("inactive_file", "active_file")


def _stat(path: Path, name: str) -> int:
    """The number after `name`; 0 if it is not listed."""
    for line in path.read_text().splitlines():
        first, *rest = line.split()
        if first == name:
            return int(rest[0])
    return 0
