"""Runs the chart's pods as containers, with the settings that a kubelet would apply."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scripts.find_helm import NoHelmError
from tests.charts.rendered import COMPONENTS, Release, render
from tests.images.compose import compose_pods
from tests.images.podman import LIMITS, NETWORK

Manifest = dict[str, Any]
MEBIBYTE = 1024**2
MODELS = ("", "-chat")
"""Suffixes of the pods of the models of ci/kind.yaml, in its order."""

UNITS = {"Mi": MEBIBYTE, "Gi": 1024 * MEBIBYTE}


@dataclass(frozen=True)
class Pod:
    """A pod of one container, and the DNS names of its Services."""

    component: str
    spec: Manifest
    names: tuple[str, ...]

    @property
    def container(self) -> Manifest:
        """The only container."""
        (container,) = self.spec["containers"]
        return dict(container)

    @property
    def image(self) -> str:
        """The container's image reference."""
        return str(self.container["image"])

    @property
    def ports(self) -> dict[str, int]:
        """The container's ports by name."""
        return {port["name"]: port["containerPort"] for port in self.container["ports"]}

    @property
    def run_arguments(self) -> list[str]:
        """Arguments of `podman run`. Fails on keys of the container that are not supported."""
        handled = {"name", "image", "imagePullPolicy", "env", "ports", "lifecycle", "resources"}
        handled |= {"startupProbe", "readinessProbe", "livenessProbe"}
        handled |= {"securityContext", "volumeMounts", "command", "args"}
        assert set(self.container) <= handled, set(self.container) - handled
        arguments = ["--detach", f"--name={self.component}", f"--network={NETWORK}", *LIMITS]
        arguments += [f"--network-alias={name}" for name in self.names]
        arguments += [f"--stop-timeout={self.spec['terminationGracePeriodSeconds']}"]
        arguments += [*self._environment(), *self._security(), *self._volumes()]
        for name, value in self.container["resources"].get("limits", {}).items():
            assert name == "memory", name
            arguments.append(f"--memory={quantity(value)}")
        arguments.append("--pull=never")
        command = self.container.get("command")
        if command:
            arguments.append(f"--entrypoint={command[0]}")
        rest = [*(command or [""])[1:], *self.container.get("args", ())]
        return [*arguments, self.image, *rest]

    def _environment(self) -> Iterator[str]:
        for variable in self.container["env"]:
            yield f"--env={variable['name']}={variable['value']}"

    def _security(self) -> Iterator[str]:
        pod, own = self.spec["securityContext"], self.container["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}  # podman's default
        yield f"--user={pod['runAsUser']}:{pod['runAsGroup']}"
        yield from (f"--cap-drop={name}" for name in own["capabilities"]["drop"])
        if own["allowPrivilegeEscalation"] is False:
            yield "--security-opt=no-new-privileges"
        if own["readOnlyRootFilesystem"]:
            # Without the tmpfs mounts that podman adds by default.
            yield from ("--read-only", "--read-only-tmpfs=false")

    def _volumes(self) -> Iterator[str]:
        volumes = {volume["name"]: volume for volume in self.spec["volumes"]}
        for mount in self.container["volumeMounts"]:
            size = quantity(volumes[mount["name"]]["emptyDir"]["sizeLimit"])
            # The kubelet creates an emptyDir with mode 0777.
            yield f"--tmpfs={mount['mountPath']}:rw,nosuid,nodev,mode=1777,size={size}"


def quantity(text: str) -> int:
    """The bytes of a quantity such as 512Mi."""
    return int(text[:-2]) * UNITS[text[-2:]]


def pods() -> tuple[dict[str, Pod], str]:
    """One pod of each service and model from the chart for kind, and the name of the source.

    Without helm the pods are derived from compose.yaml.
    """
    try:
        release = render("kind")
    except NoHelmError as error:
        found = compose_pods()
        source = f"compose.yaml, NOT THE CHART: {error}"
        return {name: Pod(name, found[name][0], (found[name][1],)) for name in COMPONENTS}, source
    found = {}
    for name in COMPONENTS:
        for deployment, suffix in zip(release.component("Deployment", name), MODELS, strict=False):
            found[name + suffix] = _pod(release, name + suffix, deployment["spec"]["template"])
    return found, "the chart"


def _pod(release: Release, component: str, template: Manifest) -> Pod:
    labels = template["metadata"]["labels"].items()
    names = tuple(
        service["metadata"]["name"]
        for service in release.of_kind("Service")
        if service["spec"]["selector"].items() <= labels
    )
    return Pod(component, template["spec"], names)
