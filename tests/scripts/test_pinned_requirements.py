"""constraints.txt: every package once, with versions and hashes; the forms that pip reads."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from scripts.pin import cpu_hashes, with_hashes
from scripts.pinned_requirements import UnpinnedError, hashed, plain, read_pins

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64
TEXT = f"""\
# Comment.
Some_Package==1.0 \\
    --hash={ONE} \\
    --hash={TWO}
torch==2.13.0 ; sys_platform == 'linux' \\
    --hash={ONE}
bare==3
"""


def report(*packages: tuple[str, str]) -> dict[str, Any]:
    """What `pip install --dry-run --report` writes, as far as it is read."""
    return {"install": [{"metadata": {"name": n, "version": v}} for n, v in packages]}


def test_every_package_is_pinned_with_hashes() -> None:
    """A package without hashes could not be installed in an image."""
    pins = list(read_pins(CONSTRAINTS))
    names = [re.sub(r"[-_.]+", "-", pin.name).lower() for pin in pins]
    assert len(set(names)) == len(names) > 150
    assert [pin.name for pin in pins if not pin.hashes] == []


def test_torch_has_the_hashes_of_its_builds_for_cuda_and_for_cpus() -> None:
    """Those of PyPI's wheels and of PyTorch's own index, for CPython 3.11 on x86-64."""
    [torch] = [pin for pin in read_pins(CONSTRAINTS) if pin.name == "torch"]
    cuda = "sha256:60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7"
    cpu = "sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"
    assert torch.version == "2.13.0"
    assert {cuda, cpu} <= set(torch.hashes)


def test_pip_gets_versions_as_constraints() -> None:
    """Without hashes and markers."""
    assert plain(TEXT) == "Some_Package==1.0\ntorch==2.13.0\nbare==3\n"


def test_reported_packages_get_their_hashes() -> None:
    """Names are compared as pip does; a local version is a build of the pinned one."""
    found = hashed(TEXT, report(("some-package", "1.0"), ("torch", "2.13.0+cpu")))
    assert found == (
        f"some-package==1.0 --hash={ONE} --hash={TWO}\ntorch==2.13.0+cpu --hash={ONE}\n"
    )


@pytest.mark.parametrize(
    ("package", "message"),
    [
        (("other", "1"), "other 1 is pinned not at all"),
        (("torch", "2.14.0"), r"torch 2\.14\.0 is pinned at 2\.13\.0"),
        (("bare", "3"), "bare 3 is pinned without hashes"),
    ],
)
def test_a_package_without_a_pinned_hash_stops_the_build(
    package: tuple[str, str], message: str
) -> None:
    """Also another version than the pinned one."""
    with pytest.raises(UnpinnedError, match=message):
        hashed(TEXT, report(package))


def test_pip_compares_the_hashes(tmp_path: Path) -> None:
    """A wheel with another hash than the pinned one is refused; it names both."""
    wheel = tmp_path / "weir_sample-1-py3-none-any.whl"
    _write_wheel(wheel)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    requirements = tmp_path / "requirements.txt"
    pinned = f"weir-sample==1 \\\n    --hash={ONE}\n"
    requirements.write_text(hashed(pinned, report(("weir_sample", "1"))))
    command = [sys.executable, "-m", "pip", "--isolated", "install", "--dry-run", "--no-deps"]
    command += ["--no-index", "--find-links", str(tmp_path), "--require-hashes"]
    command += ["--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert ONE.removeprefix("sha256:") in done.stderr
    assert found in done.stderr


def _write_wheel(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        folder = "weir_sample-1.dist-info"
        about = "Metadata-Version: 2.1\nName: weir-sample\nVersion: 1\n"
        archive.writestr(f"{folder}/METADATA", about)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{folder}/WHEEL", tags)
        archive.writestr(f"{folder}/RECORD", "")


def test_hashes_of_cpu_builds_come_from_pytorchs_index() -> None:
    """Only those of the pinned version; they are added to the other hashes."""
    link = '<a href="/whl/cpu/torch-{}%2Bcpu-cp311-cp311-linux_x86_64.whl#{}">x</a>'
    digest, other = "a" * 64, "b" * 64
    page = link.format("2.13.0", f"sha256={digest}") + link.format("2.12.0", f"sha256={other}")
    assert cpu_hashes(page, "2.13.0") == [f"sha256:{digest}"]
    [_, torch, _] = read_pins(with_hashes(TEXT, "torch", [f"sha256:{digest}"]))
    assert torch.hashes == [ONE, f"sha256:{digest}"]
