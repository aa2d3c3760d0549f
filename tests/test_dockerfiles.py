"""The rules of the Dockerfiles and the compose file, read from the files themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from scripts.find_helm import NoHelmError
from tests.charts.rendered import COMPONENTS, environment, render

ROOT = Path(__file__).resolve().parents[1]


def instructions(service: str) -> list[str]:
    """The instructions of a Dockerfile, one line each."""
    text = re.sub(r"^#.*\n", "", (ROOT / service / "Dockerfile").read_text(), flags=re.MULTILINE)
    return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def value_of(lines: list[str], name: str) -> str:
    """The last value that an ENV gives a name."""
    found = [match[1] for line in lines for match in [re.search(rf"\b{name}=(\S+)", line)] if match]
    return found[-1]


@pytest.mark.parametrize("service", COMPONENTS)
def test_an_image_is_built_in_two_stages_from_one_base(service: str) -> None:
    """The base is an argument, so that it can be pinned by digest, and never `latest`."""
    lines = instructions(service)
    assert lines[0] == "ARG BASE_IMAGE=python:3.11-slim-bookworm"
    assert [line for line in lines if line.startswith("FROM")] == [
        "FROM ${BASE_IMAGE} AS build",
        "FROM ${BASE_IMAGE}",
    ]
    final = lines[lines.index("FROM ${BASE_IMAGE}") :]
    assert "USER 10001:10001" in final
    # Nothing runs in the final stage: what is in it was made in the other one.
    assert [line for line in final if line.startswith("RUN")] == []
    assert f'ENTRYPOINT ["python", "-m", "{service}"]' in final


@pytest.mark.parametrize("service", COMPONENTS)
def test_an_image_serves_where_the_chart_expects_it(service: str) -> None:
    """Addresses and account are the same in both, so an image also runs without the chart."""
    lines = instructions(service)
    try:
        pod = render("kind").deployment(service)["spec"]["template"]["spec"]
    except NoHelmError as error:
        pytest.skip(f"THE IMAGES ARE NOT COMPARED WITH THE CHART: {error}")
    (container,) = pod["containers"]
    chart = environment(container)
    addresses = {name for name in chart if name.endswith("_LISTEN")}
    assert f"{service.upper()}_LISTEN" in addresses
    assert {name: value_of(lines, name) for name in addresses} == {
        name: chart[name] for name in addresses
    }
    user, group = (pod["securityContext"][key] for key in ("runAsUser", "runAsGroup"))
    assert f"USER {user}:{group}" in lines


def test_the_four_dockerfiles_say_the_same() -> None:
    """They differ in the service's name, ports and data, and in torch for the engine."""
    tailored = re.compile(
        r"ENV|EXPOSE|ENTRYPOINT|LABEL|ARG (VARIANT|TORCH)|COPY (models|examples)|RUN"
    )
    common = {
        tuple(line for line in instructions(service) if not tailored.match(line))
        for service in COMPONENTS
    }
    assert len(common) == 1


def test_the_context_has_all_that_is_copied() -> None:
    """What a Dockerfile copies is let through by .dockerignore."""
    allowed = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    for service in COMPONENTS:
        for line in instructions(service):
            if line.startswith("COPY") and "--from" not in line:
                assert set(line.split()[1:-1]) <= allowed, line


def test_the_compose_file_confines_as_the_chart_does() -> None:
    """Read-only, no capability, no more privileges; the images are those that are built."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert len(compose["services"]) == len(COMPONENTS)
    for service in compose["services"].values():
        component = service["build"]["dockerfile"].partition("/")[0]
        assert service["image"] == f"weir/{component}:0.1.0"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["healthcheck"]["test"][0] == "CMD"
