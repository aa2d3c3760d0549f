"""Writes software bills of materials (SBOM): python -m scripts.sbom ARCHIVE FOLDER

For each image of an archive made by `make images.tar`, writes FOLDER/NAME.cdx.json in the CycloneDX
format. It lists the Python packages, found by cyclonedx-py, and the packages of the Debian base,
read from the layers of the image.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

PACKAGE_LIST = "var/lib/dpkg/status"
METADATA = re.compile(r"(app|opt/weir/lib/python[\d.]+/site-packages)/[^/]+\.dist-info/.+")


def write_all(archive: Path, folder: Path) -> list[Path]:
    """Writes a file for each image; returns the paths. Raises CalledProcessError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with tarfile.open(archive) as images, tempfile.TemporaryDirectory() as scratch:
        listing = images.extractfile("manifest.json")
        assert listing is not None, "the archive has no manifest.json"
        for image in json.load(listing):
            name, _, tag = image["RepoTags"][0].rpartition("/")[2].partition(":")
            root = Path(scratch) / f"{name}-{tag}"
            unpack(images, image["Layers"], root)
            bill = python_packages(root)
            bill["metadata"]["component"] = {"type": "container", "name": name, "version": tag}
            bill["components"] += debian_packages(root)
            written.append(folder / f"{name}-{tag}.cdx.json")
            text = json.dumps(bill, indent=2, ensure_ascii=False) + "\n"
            mistake = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
            assert mistake is None, mistake
            written[-1].write_text(text)
    return written


def unpack(images: tarfile.TarFile, layers: list[str], root: Path) -> None:
    """Extracts the package metadata of an image's layers below `root`."""
    for name in layers:
        with tarfile.open(fileobj=images.extractfile(name)) as layer:
            for member in layer:
                path = member.name.removeprefix("./")
                if member.isfile() and (path == PACKAGE_LIST or METADATA.fullmatch(path)):
                    content = layer.extractfile(member)
                    assert content is not None, "a regular file has content"
                    target = root / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content.read())


def python_packages(root: Path) -> dict[str, Any]:
    """The SBOM of the Python packages below `root`."""
    folders = sorted({str(path.parent) for path in root.rglob("*.dist-info")})
    # cyclonedx-py runs an interpreter to get its package folders. This script stands in for the
    # image's interpreter, which cannot run here.
    interpreter = root / "python"
    interpreter.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(['', *folders])}\nEND\n")
    interpreter.chmod(0o755)
    command = [
        sys.executable,
        "-m",
        "cyclonedx_py",
        "environment",
        "--output-reproducible",
        "--no-validate",
    ]
    done = subprocess.run(
        [*command, str(interpreter)], check=True, stdout=subprocess.PIPE, cwd=os.sep
    )
    return dict(json.loads(done.stdout))


def debian_packages(root: Path) -> list[dict[str, str]]:
    """A component for each Debian package; empty if the base image is not Debian."""
    path = root / PACKAGE_LIST
    if not path.exists():
        return []
    return [
        {
            "type": "library",
            "bom-ref": f"deb:{fields['Package']}:{fields['Architecture']}",
            "name": fields["Package"],
            "version": fields["Version"],
            "purl": f"pkg:deb/debian/{quote(fields['Package'])}@{quote(fields['Version'])}"
            f"?arch={fields['Architecture']}",
        }
        for fields in paragraphs(path.read_text(errors="replace"))
        if fields.get("Status", "").endswith(" installed")
    ]


def paragraphs(text: str) -> Iterator[dict[str, str]]:
    """The fields of each paragraph; of a multi-line field, the first line."""
    for paragraph in text.split("\n\n"):
        lines = (line.partition(": ") for line in paragraph.splitlines() if line[:1].strip())
        yield {name: value for name, _, value in lines}


def main() -> int:
    """Prints the paths of the written files."""
    archive, folder = sys.argv[1:]
    for path in write_all(Path(archive), Path(folder)):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
