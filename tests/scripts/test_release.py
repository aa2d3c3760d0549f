"""A release in a real registry: images with SBOM and provenance, and the chart."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from scripts.release import __main__ as command
from scripts.release import provenance
from scripts.release.chart import SigningKey, helm, package
from scripts.release.registry import MANIFEST, Image, Registry, RegistryError
from scripts.version import PLACES, outdated, version, write

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("gateway", "orchestrator", "tokenizer", "inference")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of Docker's registry, from Debian's package docker-registry."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("RELEASES ARE NOT TESTED: docker-registry is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("registry")
    settings = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (folder / "config.yml").write_text(yaml.safe_dump(settings))
    process = subprocess.Popen([program, "serve", str(folder / "config.yml")])
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/v2/", trust_env=False)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def push_image(host: str, repository: str, tag: str) -> str:
    """Pushes an image with an empty configuration and no layers; returns its digest."""
    with Registry(host) as client:
        config = client._upload(repository, b"{}")
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {**config, "mediaType": "application/vnd.oci.image.config.v1+json"},
            "layers": [],
        }
        content = json.dumps(manifest).encode()
        path = f"/v2/{repository}/manifests/{tag}"
        client._send("PUT", path, content=content, headers={"content-type": MANIFEST})
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_a_release_is_complete(
    registry: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SBOM and provenance refer to each image's digest; the pulled chart names the images."""
    monkeypatch.setenv("BASE_IMAGE", f"python:3.11@sha256:{'b' * 64}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    tag = version()
    digests = {name: push_image(registry, f"team/weir/{name}", tag) for name in SERVICES}
    for name in SERVICES:
        (tmp_path / f"{name}-{tag}.cdx.json").write_text(json.dumps({"bomFormat": name}))
    images = [f"{registry}/team/weir/{name}:{tag}" for name in SERVICES]
    arguments = ["--registry", f"{registry}/team/weir", "--sbom", str(tmp_path), *images]
    monkeypatch.setattr("sys.argv", ["release", *arguments])
    command.main()
    # A repeated release replaces the artifacts, and does not add to them.
    command.attach_all(images, tmp_path, {"BASE_IMAGE": f"python:3.11@sha256:{'b' * 64}"})
    assert f"{registry}/team/weir/charts/weir@sha256:" in capsys.readouterr().out

    with Registry(registry) as client:
        for name, digest in digests.items():
            check_artifacts(client, Image.parse(f"{registry}/team/weir/{name}:{tag}"), digest)
    check_chart(registry, tmp_path / "pulled", digests)


def test_an_incomplete_release_is_refused(registry: str, tmp_path: Path) -> None:
    """An image without provenance, or with that of another image, fails the release."""
    digest = push_image(registry, "team/half/gateway", "1")
    reference = f"{registry}/team/half/gateway:1"
    image = Image.parse(reference)
    with pytest.raises(command.IncompleteError, match="no SBOM"):
        command.check({reference: digest})
    with Registry(registry) as client:
        client.attach(image, command.SBOM, b"{}", "bill")
        with pytest.raises(command.IncompleteError, match="no provenance"):
            command.check({reference: digest})
        other = json.dumps(provenance.statement("x", f"sha256:{'0' * 64}", {})).encode()
        client.attach(image, provenance.TYPE, other, "built")
    with pytest.raises(command.IncompleteError, match="about another image"):
        command.check({reference: digest})
    with pytest.raises(command.IncompleteError, match="was replaced"):
        command.check({reference: f"sha256:{'1' * 64}"})


def test_the_chart_is_signed_with_a_pgp_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """helm verifies the archive, and ArtifactHub's annotation names the key."""
    if shutil.which("gpg") is None:
        pytest.skip("THE CHART'S SIGNATURE IS NOT TESTED: gpg is not installed")
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("GNUPGHOME", str(home))
    gpg = ["gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    subprocess.run([*gpg, "--quick-gen-key", "Weir <w@example.org>", "rsa2048", "sign"], check=True)
    for kind, file in (("--export-secret-keys", "secret"), ("--export", "public")):
        subprocess.run([*gpg, "--output", str(tmp_path / file), kind], check=True)
    subprocess.run(["gpgconf", "--kill", "all"], check=False)
    key = SigningKey("Weir", tmp_path / "secret", "https://example.org/key.asc")
    archive = package("example.org/weir", {}, tmp_path, key)
    helm("verify", str(archive), "--keyring", str(tmp_path / "public"))
    about = yaml.safe_load((tmp_path / "weir/Chart.yaml").read_text())["annotations"]
    signed = yaml.safe_load(about["artifacthub.io/signKey"])
    assert signed == {"fingerprint": key.fingerprint, "url": "https://example.org/key.asc"}
    assert len(key.fingerprint) == 40


def check_artifacts(client: Registry, image: Image, digest: str) -> None:
    """One SBOM and one provenance, about the digest, the commit and the base image."""
    listed = client.referrers(image)
    artifacts = {each["artifactType"]: each["digest"] for each in listed}
    assert artifacts.keys() == {command.SBOM, provenance.TYPE}
    assert len(listed) == 2
    bill = json.loads(client.artifact(image.repository, artifacts[command.SBOM]))
    assert bill == {"bomFormat": image.repository.rpartition("/")[2]}
    built = json.loads(client.artifact(image.repository, artifacts[provenance.TYPE]))
    (subject,) = built["subject"]
    assert f"sha256:{subject['digest']['sha256']}" == digest
    sources = built["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [len(each["digest"].get("gitCommit", "")) for each in sources] == [40, 0]
    assert sources[1]["digest"] == {"sha256": "b" * 64}


def check_chart(registry: str, folder: Path, digests: dict[str, str]) -> None:
    """The chart in the registry is the repository's, with the names of the pushed images."""
    tag = version()
    source = f"oci://{registry}/team/weir/charts/weir"
    helm("pull", source, "--version", tag, "--plain-http", "--untar", "--untardir", str(folder))
    chart = folder / "weir"
    rendered = helm("template", "weir", str(chart), "--kube-version", "1.36.0")
    found = {
        container["image"]
        for each in yaml.safe_load_all(rendered)
        if each and each["kind"] == "Deployment"
        for container in each["spec"]["template"]["spec"]["containers"]
    }
    assert found == {f"{registry}/team/weir/{name}:{tag}" for name in SERVICES}
    annotations = yaml.safe_load((chart / "Chart.yaml").read_text())["annotations"]
    listed = {each["image"] for each in yaml.safe_load(annotations["artifacthub.io/images"])}
    assert listed == {f"{registry}/team/weir/{n}:{tag}@{d}" for n, d in digests.items()}
    for name in ("links", "screenshots", "changes"):
        assert yaml.safe_load(annotations[f"artifacthub.io/{name}"])


def test_a_missing_image_and_an_incomplete_reference_are_named(registry: str) -> None:
    """The messages have the reference."""
    with Registry(registry) as client, pytest.raises(RegistryError, match="manifests/9: 404"):
        client.digest(Image.parse(f"{registry}/team/weir/gateway:9"))
    with pytest.raises(ValueError, match="weir/gateway:1 must be HOST/REPOSITORY:TAG"):
        Image.parse("weir/gateway:1")


def test_all_files_have_the_version_of_pyproject(tmp_path: Path) -> None:
    """`make chart` copies it; a new version reaches every file."""
    assert outdated() == {}
    for path in (*PLACES, "pyproject.toml"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    project = tmp_path / "pyproject.toml"
    old, new = f'version = "{version()}"', 'version = "9.8.7"'
    project.write_text(project.read_text().replace(old, new, 1))
    assert outdated(tmp_path).keys() == PLACES.keys()
    write(tmp_path)
    assert outdated(tmp_path) == {}
    chart = yaml.safe_load((tmp_path / "charts/weir/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == ("9.8.7", "9.8.7")
    assert "appVersion" in (tmp_path / "charts/weir/Chart.yaml").read_text()


def test_the_makefile_uses_the_version_and_needs_a_registry() -> None:
    """`make release` without HOST/PATH fails with the reason before it builds."""
    arguments = ["make", "--no-print-directory", "--old-file=.venv/.dev", "release"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "set REGISTRY to HOST/PATH" in done.stderr
    script = "include Makefile\n.PHONY: show\nshow:\n\t@echo $(TAG)\n"
    shown = subprocess.run(
        ["make", "--no-print-directory", "-f", "-", "show"],
        cwd=ROOT,
        input=script,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == version()
