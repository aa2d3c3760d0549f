"""Rules for the Dockerfiles and the compose file, checked in their text."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from mesh.hub.download import PATTERNS
from scripts.find_helm import NoHelmError
from tests.charts.rendered import COMPONENTS, environment, render

ROOT = Path(__file__).resolve().parents[1]


def instructions(service: str) -> list[str]:
    """The instructions of a Dockerfile, with continuation lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / service / "Dockerfile").read_text(), flags=re.MULTILINE)
    return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def value_of(lines: list[str], name: str) -> str:
    """The last value of a name in ENV instructions."""
    found = [match[1] for line in lines for match in [re.search(rf"\b{name}=(\S+)", line)] if match]
    return found[-1]


@pytest.mark.parametrize("service", COMPONENTS)
def test_an_image_is_built_in_two_stages_from_one_base(service: str) -> None:
    """The base is a build argument; its default is the Makefile's, pinned by digest."""
    lines = instructions(service)
    base = re.fullmatch(
        r"ARG BASE_IMAGE=(python:3\.11-slim-bookworm@sha256:[0-9a-f]{64})", lines[0]
    )
    assert base is not None
    assert f"BASE_IMAGE ?= {base[1]}\n" in (ROOT / "Makefile").read_text()
    assert [line for line in lines if line.startswith("FROM")] == [
        "FROM ${BASE_IMAGE} AS build",
        "FROM ${BASE_IMAGE}",
    ]
    final = lines[lines.index("FROM ${BASE_IMAGE}") :]
    assert "USER 10001:10001" in final
    # The final stage runs no command; it copies the result of the build stage.
    assert [line for line in final if line.startswith("RUN")] == []
    assert f'ENTRYPOINT ["python", "-m", "{service}"]' in final


@pytest.mark.parametrize("service", COMPONENTS)
def test_an_image_listens_where_the_chart_expects_it(service: str) -> None:
    """Listen addresses and user are the same in both, so an image also runs without the chart."""
    lines = instructions(service)
    try:
        pod = render("kind").component("Deployment", service)[0]["spec"]["template"]["spec"]
    except NoHelmError as error:
        pytest.skip(f"THE IMAGES ARE NOT COMPARED WITH THE CHART: {error}")
    (container,) = pod["containers"]
    chart = environment(container)
    # Without the chart a gateway works alone.
    addresses = {name for name in chart if name.endswith("_LISTEN") and "PEERS" not in name}
    assert f"{service.upper()}_LISTEN" in addresses
    assert {name: value_of(lines, name) for name in addresses} == {
        name: chart[name] for name in addresses
    }
    user, group = (pod["securityContext"][key] for key in ("runAsUser", "runAsGroup"))
    assert f"USER {user}:{group}" in lines


@pytest.mark.parametrize(("service", "what"), [("tokenizer", "tokenizer"), ("inference", "model")])
def test_images_contain_the_demo_models_files(service: str, what: str) -> None:
    """Those that a download of a model has, so that images serve all that a local run serves."""
    folder = ROOT / "models" / "demo"
    needed = {
        path.name
        for path in folder.iterdir()
        if any(fnmatch(path.name, pattern) for pattern in PATTERNS[what])
    }
    assert "tokenizer.json" in needed
    script = (ROOT / "scripts" / "install_in_image.sh").read_text().replace("\\\n", " ")
    installed = re.search(rf"    {service}\)\n.*?demo_model ([^\n]+)\n", script, re.DOTALL)
    assert installed is not None
    assert set(installed[1].split()) == needed


def test_packages_are_installed_with_hashes_only() -> None:
    """Apart from pip's own report and from the wheel that the build has made from the sources."""
    script = (ROOT / "scripts" / "install_in_image.sh").read_text().replace("\\\n", " ")
    calls = [line.strip() for line in script.splitlines() if "pip_in " in line and "#" not in line]
    assert len(calls) == 5
    for call in calls:
        unneeded = "--dry-run" in call or "/tmp/wheel/weir-*.whl" in call
        assert unneeded != ("--require-hashes" in call), call


def test_the_four_dockerfiles_are_alike() -> None:
    """They differ only in the service's name, ports and data, and in torch for inference."""
    tailored = re.compile(
        r"ENV|EXPOSE|ENTRYPOINT|LABEL|ARG (VARIANT|TORCH|CHAT|EMBEDDING)|COPY (models|examples)|RUN"
    )
    common = {
        tuple(line for line in instructions(service) if not tailored.match(line))
        for service in COMPONENTS
    }
    assert len(common) == 1


def test_the_build_context_contains_all_copied_files() -> None:
    """.dockerignore allows every path that a Dockerfile copies."""
    allowed = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    for service in COMPONENTS:
        for line in instructions(service):
            if line.startswith("COPY") and "--from" not in line:
                assert set(line.split()[1:-1]) <= allowed, line


def test_the_compose_file_restricts_containers_like_the_chart() -> None:
    """Read-only root, no capabilities, no privilege escalation; the images are the built ones."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert len(compose["services"]) == len(COMPONENTS)
    for service in compose["services"].values():
        component = service["build"]["dockerfile"].partition("/")[0]
        assert service["image"] == f"weir/{component}:0.1.0"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["healthcheck"]["test"][0] == "CMD"
