"""The chart of a release: its values name the released images, its annotations their digests."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from scripts.find_helm import find_helm
from scripts.generate_chart import generate

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "weir"


class ChartError(Exception):
    """helm or gpg failed; the message is theirs."""


class SigningKey(NamedTuple):
    """The PGP key that signs the chart."""

    name: str
    """User id, or a part of it, of the key in the keyring."""
    keyring: Path
    """File with the secret key, as `gpg --export-secret-keys` writes it."""
    url: str
    """Where users find the public key."""
    passphrase_file: str = ""

    @property
    def fingerprint(self) -> str:
        """Raises ChartError."""
        command = ["gpg", "--show-keys", "--with-colons", str(self.keyring)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.search(r"^fpr:+([0-9A-F]{40}):", done.stdout, re.MULTILINE)
        if done.returncode or found is None:
            raise ChartError(f"{self.keyring} has no PGP key: {done.stderr.strip()}")
        return found[1]


def package(
    registry: str, digests: Mapping[str, str], folder: Path, key: SigningKey | None = None
) -> Path:
    """Writes the chart's archive to `folder`, for images below HOST/PATH; returns its path.

    `digests` are the images' by reference. With a key the signature is beside the archive. Raises
    ChartError.
    """
    chart = folder / "weir"
    shutil.rmtree(chart, ignore_errors=True)
    shutil.copytree(CHART, chart)
    _name_images(chart, registry)
    for name, text in generate(chart).items():
        (chart / name).write_text(text)
    _annotate(chart / "Chart.yaml", digests, key)
    signing: list[str] = []
    if key is not None:
        signing = ["--sign", "--key", key.name, "--keyring", str(key.keyring)]
        if key.passphrase_file:
            signing += ["--passphrase-file", key.passphrase_file]
    helm("package", str(chart), "--destination", str(folder), *signing)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    return folder / f"weir-{about['version']}.tgz"


def push(archive: Path, registry: str) -> str:
    """Pushes the archive, with its signature if there is one, to oci://REGISTRY/charts.

    Returns its reference by digest.
    """
    host = registry.partition("/")[0]
    plain = ["--plain-http"] if host.partition(":")[0] in ("localhost", "127.0.0.1") else []
    output = helm("push", str(archive), f"oci://{registry}/charts", *plain)
    digest = re.search(r"Digest: (sha256:[0-9a-f]{64})", output)
    if digest is None:
        raise ChartError(f"helm push printed no digest: {output}")
    return f"{registry}/charts/weir@{digest[1]}"


def helm(*arguments: str) -> str:
    """Runs helm; returns all that it printed. Raises ChartError."""
    done = subprocess.run(
        [str(find_helm()), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ChartError(f"helm {arguments[0]}: {done.stderr.strip()}")
    return done.stdout + done.stderr


def _name_images(chart: Path, registry: str) -> None:
    """Replaces the registry and the repositories in values.yaml."""
    host, _, path = registry.partition("/")
    prefix = f"{path}/" if path else ""
    values = chart / "values.yaml"
    text = values.read_text()
    text, count = re.subn(r"(?m)^    repository: weir/", f"    repository: {prefix}", text)
    head, image, tail = text.partition("\nimage:\n")
    tail = tail.replace('  registry: ""\n', f"  registry: {host}\n", 1)
    if count != 4 or not image:
        raise ChartError("values.yaml has no longer four images of Weir")
    values.write_text(head + image + tail)


def _annotate(file: Path, digests: Mapping[str, str], key: SigningKey | None) -> None:
    """Adds the images with their digests, and the key, to Chart.yaml, in ArtifactHub's form."""
    about = yaml.safe_load(file.read_text())
    images = [
        {"name": reference.rpartition("/")[2].replace(":", "-"), "image": f"{reference}@{digest}"}
        for reference, digest in digests.items()
    ]
    about["annotations"]["artifacthub.io/images"] = yaml.safe_dump(images, sort_keys=False)
    if key is not None:
        signed = {"fingerprint": key.fingerprint, "url": key.url}
        about["annotations"]["artifacthub.io/signKey"] = yaml.safe_dump(signed, sort_keys=False)
    file.write_text(yaml.safe_dump(about, sort_keys=False, allow_unicode=True))
