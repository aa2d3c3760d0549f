"""Merging the archives that the container tools write into one archive."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from scripts.save_images import SaveError, merge, save, save_command


def write(path: Path, files: Mapping[str, bytes]) -> Path:
    """Writes a tar archive with these files."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def image(tag: str, *layers: str) -> dict[str, bytes]:
    """The files of an archive of one image."""
    manifest = [{"Config": f"{tag}.json", "RepoTags": [f"localhost/{tag}"], "Layers": [*layers]}]
    return {
        **{layer: layer.encode() for layer in layers},
        f"{tag}.json": b"{}",
        "repositories": b"{}",
        "manifest.json": json.dumps(manifest).encode(),
    }


def test_an_archive_has_all_images_with_the_given_names(tmp_path: Path) -> None:
    """Without podman's localhost/ prefix; a shared layer is stored once."""
    parts = {
        "weir/a:1": write(tmp_path / "a.tar", image("a", "base.tar", "a.tar")),
        "weir/b:1": write(tmp_path / "b.tar", image("b", "base.tar", "b.tar")),
    }
    merge(parts, tmp_path / "images.tar")
    with tarfile.open(tmp_path / "images.tar") as whole:
        content = whole.extractfile("manifest.json")
        assert content is not None
        manifest = json.load(content)
        names = whole.getnames()
        layer = whole.extractfile("b.tar")
        assert layer is not None
        assert layer.read() == b"b.tar"
    assert [each["RepoTags"] for each in manifest] == [["weir/a:1"], ["weir/b:1"]]
    assert manifest[1]["Layers"] == ["base.tar", "b.tar"]
    assert sorted(names) == sorted(
        ["base.tar", "a.tar", "a.json", "b.tar", "b.json", "manifest.json"]
    )


def test_an_input_with_several_images_is_refused(tmp_path: Path) -> None:
    """Each input must contain exactly one image."""
    two = write(tmp_path / "two.tar", {"manifest.json": b"[{}, {}]"})
    with pytest.raises(ValueError, match="has 2 images, not one"):
        merge({"weir/a:1": two}, tmp_path / "images.tar")


@pytest.mark.parametrize(
    ("tool", "command"),
    [
        ("/usr/bin/docker", ["/usr/bin/docker", "save", "--output", "/f", "a:1"]),
        ("podman", ["podman", "save", "--quiet", "--output", "/f", "a:1"]),
        ("buildah", ["buildah", "push", "--quiet", "a:1", "docker-archive:/f"]),
    ],
)
def test_each_tool_has_its_save_command(tool: str, command: list[str]) -> None:
    """The tool may be given by its full path."""
    assert save_command(tool, "a:1", Path("/f")) == command


def test_an_image_that_is_missing_is_named(tmp_path: Path) -> None:
    """And no incomplete archive is left."""
    tool = tmp_path / "podman"
    tool.write_text("#!/bin/sh\nexit 125\n")
    tool.chmod(0o755)
    with pytest.raises(SaveError, match="cannot save weir/a:1; was it built"):
        save(str(tool), tmp_path / "images.tar", ["weir/a:1"])
    assert [path.name for path in tmp_path.iterdir()] == ["podman"]
