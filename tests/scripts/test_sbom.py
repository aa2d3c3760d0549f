"""The SBOM of an archive of images."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from scripts.sbom import write_all
from tests.scripts.test_save_images import write

pytestmark = pytest.mark.timeout(300)
"""cyclonedx-py is slow to start."""

STATUS = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Description: GNU C Library
 Version: 0
Version: 2.36-9+deb12u14

Package: removed
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""
SITE = "opt/weir/lib/python3.11/site-packages"


def metadata(name: str, version: str, more: str = "") -> bytes:
    """The metadata of an installed package."""
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}".encode()


def test_python_and_debian_packages_are_listed(tmp_path: Path) -> None:
    """Read from the layers: installed packages only, with licence and purl."""
    licence = "License: MIT\n"
    base = write(tmp_path / "base", {"./var/lib/dpkg/status": STATUS.encode()})
    own = write(
        tmp_path / "own",
        {
            f"{SITE}/starlette-1.0.dist-info/METADATA": metadata("starlette", "1.0", licence),
            f"{SITE}/starlette/__init__.py": b"",
            "app/weir-0.1.0.dist-info/METADATA": metadata("weir", "0.1.0"),
            "usr/lib/python3/dist-packages/not_ours-1.dist-info/METADATA": metadata(
                "not_ours", "1"
            ),
        },
    )
    manifest = [{"RepoTags": ["weir/gateway:0.1.0"], "Layers": ["base", "own"]}]
    archive = write(
        tmp_path / "images.tar",
        {
            "base": base.read_bytes(),
            "own": own.read_bytes(),
            "manifest.json": json.dumps(manifest).encode(),
        },
    )
    (path,) = write_all(archive, tmp_path / "sbom")
    assert path.name == "gateway-0.1.0.cdx.json"
    bill = json.loads(path.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    found = {each["name"]: each for each in bill["components"]}
    assert set(found) == {"libc6", "starlette", "weir"}
    assert found["libc6"]["version"] == "2.36-9+deb12u14"
    assert found["libc6"]["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64"
    assert found["starlette"]["purl"] == "pkg:pypi/starlette@1.0"
    assert found["starlette"]["licenses"] == [
        {"license": {"acknowledgement": "declared", "id": "MIT"}}
    ]


def test_compressed_layers_are_read(tmp_path: Path) -> None:
    """Some tools compress the layers."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w:gz") as archive:
        content = metadata("weir", "0.1.0")
        member = tarfile.TarInfo("app/weir-0.1.0.dist-info/METADATA")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    manifest = [{"RepoTags": ["weir/gateway:0.1.0"], "Layers": ["layer"]}]
    images = write(
        tmp_path / "images.tar",
        {"layer": layer.getvalue(), "manifest.json": json.dumps(manifest).encode()},
    )
    (path,) = write_all(images, tmp_path)
    assert [each["name"] for each in json.loads(path.read_text())["components"]] == ["weir"]
