"""The contents of the images."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import tarfile
from pathlib import Path

import pytest

from mesh.hub.download import PATTERNS
from tests.charts.rendered import COMPONENTS
from tests.images.base import BASE_IMAGE, ROOT
from tests.images.conftest import MEGABYTE, build_arguments, make
from tests.images.podman import LIMITS, Podman
from tests.images.pods import Pod

LIGHT = ("gateway", "orchestrator", "tokenizer")
MAX_SIZE = 250 * MEGABYTE
ENTRYPOINT = "python"


@pytest.mark.parametrize("component", LIGHT)
def test_light_images_are_small(built: Podman, pods: dict[str, Pod], component: str) -> None:
    """At most 250 MB uncompressed, including the base image."""
    assert built.inspect(pods[component].image)["Size"] <= MAX_SIZE


@pytest.mark.parametrize("component", COMPONENTS)
def test_torch_is_in_the_inference_image_only(
    built: Podman, pods: dict[str, Pod], component: str
) -> None:
    """Only the inference image can import torch."""
    script = "import importlib.util as u; print(u.find_spec('torch') is not None)"
    has_torch = built.run(pods[component].image, ENTRYPOINT, "-c", script)
    assert has_torch == str(component == "inference")


@pytest.mark.parametrize("component", COMPONENTS)
def test_an_image_has_user_ports_and_labels(
    built: Podman, pods: dict[str, Pod], component: str
) -> None:
    """User, ports and labels; the ports equal those of the chart."""
    config = built.inspect(pods[component].image)["Config"]
    assert config["User"] == "10001:10001"
    assert set(config["ExposedPorts"]) == {f"{port}/tcp" for port in pods[component].ports.values()}
    labels = {
        key.removeprefix("org.opencontainers.image."): v for key, v in config["Labels"].items()
    }
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert labels["title"] == f"weir-{component}"
    assert labels["version"] == pods[component].image.rpartition(":")[2]
    assert labels["revision"] == revision.stdout.strip()
    assert labels["base.name"] == BASE_IMAGE
    assert labels["licenses"] == "Apache-2.0"


@pytest.mark.parametrize("component", COMPONENTS)
def test_an_image_has_no_tools(built: Podman, pods: dict[str, Pod], component: str) -> None:
    """No compiler and no pip; the user can write to world-writable folders only."""
    image = pods[component].image
    found = built.run(image, "sh", "-c", "command -v cc gcc c++ clang ld make pip pip3 git; true")
    assert found == ""
    writable = built.run(
        image,
        "sh",
        "-c",
        "find / -xdev -writable -not -type l -not -path '/dev*' 2>/dev/null; true",
    )
    assert set(writable.split()) <= {"/tmp", "/var/tmp", "/run/lock", "/var/lock", "/run"}


@pytest.mark.parametrize("component", COMPONENTS)
def test_an_image_has_the_repositorys_files(
    built: Podman, pods: dict[str, Pod], component: str
) -> None:
    """The service, mesh, and the files of the demo model equal those of the repository."""
    listing = built.run(
        pods[component].image,
        "sh",
        "-c",
        f"cd /app && find {component} mesh models -type f -not -name '*.pyc' 2>/dev/null"
        " | xargs sha256sum",
    )
    found = {path: digest for digest, path in (line.split() for line in listing.splitlines())}
    folders = [ROOT / component, ROOT / "mesh"]
    wanted = {path for folder in folders for path in folder.rglob("*.py")}
    what = {"tokenizer": "tokenizer", "inference": "model"}.get(component)
    for pattern in PATTERNS[what] if what else ():
        wanted.update((ROOT / "models" / "demo").glob(pattern))
    expected = {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in wanted
    }
    assert len(expected) > 40
    assert {path: found.get(path) for path in expected} == expected


def test_the_chat_model_is_in_the_images(built: Podman, pods: dict[str, Pod]) -> None:
    """Both images derive the same files from it; the engine's has the weights too."""
    listings = [
        built.run(pods[component].image, "sh", "-c", "cd /app/models/chat && sha256sum *").split()
        for component in ("tokenizer", "inference")
    ]
    tokenizer, engine = (dict(zip(each[1::2], each[::2], strict=True)) for each in listings)
    weights = engine.keys() - tokenizer.keys()
    assert {name.rpartition(".")[2] for name in weights} == {"gguf"}
    assert tokenizer.items() < engine.items()
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} < tokenizer.keys()


@pytest.mark.parametrize("component", COMPONENTS)
def test_an_image_runs_as_any_user(built: Podman, pods: dict[str, Pod], component: str) -> None:
    """OpenShift assigns a random UID without a name, and the group 0."""
    arguments = ["--rm", "--user=1000680000:0", "--read-only", "--network=none", *LIMITS]
    image = pods[component].image
    user = built("run", *arguments, "--entrypoint=id", image, "-u").strip()
    assert user == "1000680000"
    assert "--listen" in built("run", *arguments, image, "--help")


def test_the_engine_finds_its_native_decoder(built: Podman, pods: dict[str, Pod]) -> None:
    """The image contains the compiled decoder; it is unavailable only on an unsupported CPU."""
    script = (
        "from inference.model.native import library as l\n"
        "try: print(l.load()._name)\n"
        "except l.Unavailable as reason: print(reason)"
    )
    found = built.run(pods["inference"].image, ENTRYPOINT, "-c", script)
    assert found.startswith(("/app/inference/model/native/decoder-", "the CPU lacks"))
    listing = built.run(pods["inference"].image, "ls", "/app/inference/model/native")
    assert "decoder-" in listing or platform.machine() != "x86_64"


def test_builds_are_reproducible(built: Podman, pods: dict[str, Pod]) -> None:
    """The same sources and wheels give the same layers."""
    image = pods["gateway"].image
    before = built.inspect(image)["RootFS"]["Layers"]
    rebuilt = "weir-again/gateway:0.1.0"
    arguments = [*build_arguments(built), f"IMAGES={rebuilt}"]
    make("build", *arguments[:-1], "BUILD_ARGS=--network=none --no-cache", arguments[-1])
    assert built.inspect(rebuilt)["RootFS"]["Layers"] == before


@pytest.fixture(scope="session")
def archive(built: Podman, pods: dict[str, Pod], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of two images, made by `make images.tar`."""
    archive = tmp_path_factory.mktemp("images") / "images.tar"
    names = " ".join(pods[component].image for component in ("gateway", "tokenizer"))
    make("images.tar", f"CONTAINER={built.executable}", f"IMAGES={names}", f"ARCHIVE={archive}")
    return archive


def test_an_archive_can_be_loaded(built: Podman, pods: dict[str, Pod], archive: Path) -> None:
    """`podman load` restores the images with the manifests' names and the same content."""
    names = [pods[component].image for component in ("gateway", "tokenizer")]
    with tarfile.open(archive) as images:
        listing = images.extractfile("manifest.json")
        assert listing is not None
        assert [image["RepoTags"] for image in json.load(listing)] == [[name] for name in names]
    ids = {name: built.inspect(name)["Id"] for name in names}
    for name in names:
        built("untag", name)
    try:
        loaded = built("load", "--input", str(archive))
        assert all(name in loaded for name in names)
        assert {name: built.inspect(name)["Id"] for name in names} == ids
    finally:
        for name, number in ids.items():
            built("tag", number, name)


def test_the_sbom_is_complete(
    built: Podman, pods: dict[str, Pod], archive: Path, tmp_path: Path
) -> None:
    """It lists every Python package of the image, and the packages of the base image."""
    # --old-file: the environment of the tests is not reinstalled.
    make("--old-file=.venv/.dev", "sbom", f"ARCHIVE={archive}", f"SBOM={tmp_path}")
    script = (
        "import importlib.metadata as m; "
        "print(*{f'{d.name}=={d.version}' for d in m.distributions()}, sep='\\n')"
    )
    for component in ("gateway", "tokenizer"):
        name, tag = pods[component].image.rpartition("/")[2].split(":")
        bill = json.loads((tmp_path / f"{name}-{tag}.cdx.json").read_text())
        components = bill["components"]
        debian = {c["name"] for c in components if c.get("purl", "").startswith("pkg:deb/")}
        python = {
            f"{c['name']}=={c['version']}"
            for c in components
            if not c["bom-ref"].startswith("deb:")
        }
        assert python == set(built.run(pods[component].image, ENTRYPOINT, "-c", script).split())
        assert {"libc6", "python3.11-minimal"} <= debian or "python3.13-minimal" in debian
        assert bill["metadata"]["component"] == {"type": "container", "name": name, "version": tag}
