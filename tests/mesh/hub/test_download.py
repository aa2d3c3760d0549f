"""Downloads into a folder with the real client from a fake hub."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest
from huggingface_hub import constants

from inference.model import file_patterns
from mesh.hub.download import MARKER, PATTERNS, main
from mesh.hub.transfer import locked
from tests.mesh.hub.fake_hub import COMMIT, FILES, REPOSITORY, WEIGHTS, Hub
from tokenizer import files as tokenizer_files

SHA256 = hashlib.sha256(WEIGHTS).hexdigest()

pytestmark = pytest.mark.timeout(60)


def arguments(folder: Path) -> list[str]:
    return [f"--model={REPOSITORY}", f"--folder={folder}"]


def download(folder: Path, *further: str) -> str:
    """Runs the command in this process; returns the message that it failed with, or ""."""
    try:
        main([*arguments(folder), *further])
    except SystemExit as failure:
        return str(failure.code)
    return ""


def names_in(folder: Path) -> set[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {name.as_posix() for name in found if not name.parts[0].startswith(".")}


def test_a_model_is_downloaded_once(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One copy of the weights, no pickle, no code; the second time the hub is not contacted."""
    folder = tmp_path / "model"
    assert download(folder, f"--sha256=model.safetensors={SHA256}") == ""
    excluded = {
        "consolidated.safetensors",
        "model.fp16.safetensors",
        "pytorch_model.bin",
        "modeling_code.py",
    }
    assert names_in(folder) == FILES.keys() - excluded
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    hub.requested.clear()
    capsys.readouterr()
    assert download(folder, f"--sha256=model.safetensors={SHA256}") == ""
    assert "already there" in capsys.readouterr().out
    assert hub.requested == []


def test_a_tokenizer_comes_without_weights(hub: Hub, tmp_path: Path) -> None:
    """A few small files."""
    folder = tmp_path / "tokenizer"
    assert download(folder, "--what=tokenizer") == ""
    assert "tokenizer.json" in names_in(folder)
    assert not [name for name in names_in(folder) if name.endswith(".safetensors")]


def test_a_revision_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    """A tag has other files than the branch."""
    assert download(tmp_path, "--revision=v1") == ""
    assert (tmp_path / "config.json").read_bytes() == b'{"old": true}'
    assert download(tmp_path, f"--revision={COMMIT}") == ""
    assert (tmp_path / "config.json").read_bytes() == b"{}"
    assert len(hub.ranges("model.safetensors")) == 1, "unchanged weights are kept"


def test_a_download_continues_after_the_process_was_killed(hub: Hub, tmp_path: Path) -> None:
    """The next process requests the missing bytes only."""
    weights = WEIGHTS * 32
    hub.files["model.safetensors"] = weights
    hub.hold.clear()
    hub.break_after["model.safetensors"] = 2 * constants.DOWNLOAD_CHUNK_SIZE
    process = subprocess.Popen(
        [sys.executable, "-m", "mesh.hub.download", *arguments(tmp_path)],
        env={"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "localhost"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    partial = tmp_path / f".{hashlib.sha256(weights).hexdigest()}.weir-partial"
    while not (partial.exists() and partial.stat().st_size == 2 * constants.DOWNLOAD_CHUNK_SIZE):
        assert process.poll() is None, "it ended early"
        time.sleep(0.01)
    process.kill()
    process.wait(30)
    hub.hold.set()
    hub.requested.clear()
    assert download(tmp_path) == ""
    assert hub.ranges("model.safetensors") == [f"bytes={2 * constants.DOWNLOAD_CHUNK_SIZE}-"]
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    assert not partial.exists()


def test_a_damaged_part_is_downloaded_again(hub: Hub, tmp_path: Path) -> None:
    """By the checksum of the whole file."""
    (tmp_path / f".{SHA256}.weir-partial").write_bytes(bytes(1000))
    assert download(tmp_path) == ""
    assert hub.ranges("model.safetensors") == ["bytes=1000-", None]
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_missing_file_is_downloaded_again(hub: Hub, tmp_path: Path) -> None:
    """An incomplete model does not count as present."""
    assert download(tmp_path) == ""
    (tmp_path / "model.safetensors").unlink()
    hub.requested.clear()
    assert download(tmp_path) == ""
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS
    assert not hub.ranges("config.json")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_modified_file_is_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    """Large files by the hub's SHA-256, small ones by git's blob id; no marker is written."""
    hub.served[name] = bytes(len(FILES[name]))
    assert f"{name} differs from the hub's file" in download(tmp_path)
    assert not (tmp_path / MARKER).exists()


def test_given_checksums_are_verified(hub: Hub, tmp_path: Path) -> None:
    """Also for files that are present already."""
    assert download(tmp_path) == ""
    failed = download(tmp_path, f"--sha256=model.safetensors={'0' * 64}")
    assert f"has the SHA-256 {SHA256}, but" in failed
    failed = download(tmp_path, f"--sha256=other.safetensors={'0' * 64}")
    assert "no such file" in failed


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_used_unlocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """As network file systems may be; it is logged once."""

    def flock(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.INFO), locked(tmp_path / "folder" / "lock", model="m"):
        assert caplog.messages == ["file system has no locks"]
    assert len(caplog.messages) == 1


def test_another_error_of_the_lock_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as an I/O error of the disk."""

    def flock(file: object, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path / "lock"):
        pytest.fail("not reached")


def test_the_disk_is_checked_first(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is downloaded to a disk that is too small; what is there already does not count."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=len(WEIGHTS)))
    assert download(tmp_path) == (
        f"download: {REPOSITORY} needs 0.00 GB more in {tmp_path}, which has 0.00 GB free: free "
        "some space, or set --folder to a folder on a larger disk"
    )
    assert not hub.ranges("config.json")
    assert not hub.ranges("model.safetensors")
    (tmp_path / f".{SHA256}.weir-partial").write_bytes(WEIGHTS[:1000])
    assert download(tmp_path) == ""


@pytest.mark.parametrize(
    ("what", "patterns"),
    [
        ("model", file_patterns.FILE_PATTERNS),
        ("model", tokenizer_files.FILE_PATTERNS),
        ("tokenizer", tokenizer_files.FILE_PATTERNS),
    ],
)
def test_all_files_that_services_read_are_downloaded(what: str, patterns: tuple[str, ...]) -> None:
    """The patterns of the services are among those of the download."""
    for pattern in patterns:
        name = pattern.replace("*", "some")
        assert any(fnmatch(name, each) for each in PATTERNS[what]), name
