"""Free memory within the machine and the container's limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.kv_cache.memory import free_memory

MIB = 2**20


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  8388608 kB\nMemAvailable:  4194304 kB\n")
    return path


def cgroup(folder: Path, limit: str, used: int, inactive: int = 0, active: int = 0) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    stat = f"anon 1\nfile {inactive + active}\ninactive_file {inactive}\nactive_file {active}\n"
    (folder / "memory.stat").write_text(stat)
    return folder


def test_without_a_limit_it_is_the_machines_memory(tmp_path: Path, meminfo: Path) -> None:
    assert free_memory(tmp_path / "none", meminfo) == 4096 * MIB
    assert free_memory(cgroup(tmp_path, "max", 0), meminfo) == 4096 * MIB


def test_the_containers_limit_caps_it(tmp_path: Path, meminfo: Path) -> None:
    assert free_memory(cgroup(tmp_path, str(1000 * MIB), 300 * MIB), meminfo) == 700 * MIB
    assert free_memory(cgroup(tmp_path, str(1000 * MIB), 1001 * MIB), meminfo) == 0


def test_page_cache_counts_as_free(tmp_path: Path, meminfo: Path) -> None:
    """The cgroup counts file pages as used, but the kernel evicts them on demand."""
    files = cgroup(tmp_path, str(1000 * MIB), 900 * MIB, 500 * MIB, 100 * MIB)
    assert free_memory(files, meminfo) == 700 * MIB
