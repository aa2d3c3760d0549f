"""Saves images in one archive: python -m scripts.save_images TOOL FILE NAME…

`docker load`, `podman load`, `ctr images import` and `kind load image-archive` read the archive.
Podman and buildah add `localhost/` to names without a registry; the archive has the given names, so
that a cluster finds the images.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

MANIFEST = "manifest.json"


class SaveError(Exception):
    """An image could not be saved. The message names it; the tool has printed the reason."""


def save(tool: str, file: Path, names: list[str]) -> None:
    """Writes the images to `file` with `tool` (docker, podman or buildah). Raises SaveError."""
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        parts = {}
        for number, name in enumerate(names):
            parts[name] = Path(scratch) / f"{number}.tar"
            command = save_command(tool, name, parts[name])
            if subprocess.run(command, check=False).returncode:
                raise SaveError(f"cannot save {name}; was it built?")
        whole = Path(scratch) / "images.tar"
        merge(parts, whole)
        whole.replace(file)


def save_command(tool: str, name: str, file: Path) -> list[str]:
    """The command that writes one image to a file."""
    match Path(tool).name:
        case "buildah":
            return [tool, "push", "--quiet", name, f"docker-archive:{file}"]
        case "podman":
            return [tool, "save", "--quiet", "--output", f"{file}", name]
        case _:
            return [tool, "save", "--output", f"{file}", name]


def merge(parts: Mapping[str, Path], whole: Path) -> None:
    """Merges archives of one image each; stores shared layers once."""
    images = []
    stored = set()
    with tarfile.open(whole, "w") as archive:
        for name, path in parts.items():
            with tarfile.open(path) as part:
                images.append({**image_of(part, path), "RepoTags": [name]})
                for content in contents_of(images[-1]):
                    if content not in stored:
                        archive.addfile(part.getmember(content), part.extractfile(content))
                        stored.add(content)
        listing = json.dumps(images).encode()
        head = tarfile.TarInfo(MANIFEST)
        head.size = len(listing)
        archive.addfile(head, io.BytesIO(listing))


def contents_of(image: dict[str, object]) -> tuple[str, ...]:
    """Names of the files of an image: its config and its layers."""
    layers = image["Layers"]
    assert isinstance(layers, list)
    return (str(image["Config"]), *layers)


def image_of(archive: tarfile.TarFile, path: Path) -> dict[str, object]:
    """The manifest entry of the image. Raises ValueError if there is not exactly one image."""
    listing = archive.extractfile(MANIFEST)
    images = [] if listing is None else json.load(listing)
    if len(images) != 1:
        raise ValueError(f"{path} has {len(images)} images, not one")
    return dict(images[0])


def main() -> int:
    """Returns the exit code: 1 if an image is missing."""
    tool, file, *names = sys.argv[1:]
    try:
        save(tool, Path(file), names)
    except SaveError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
