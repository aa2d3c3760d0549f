"""Publishes what belongs to pushed images: SBOMs, provenance, the chart, and signatures.

python -m scripts.release --registry HOST/PATH --sbom FOLDER [--sign] IMAGE…
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from scripts.find_helm import NoHelmError
from scripts.release import provenance
from scripts.release.chart import ChartError, SigningKey, package, push
from scripts.release.registry import Image, Registry, RegistryError

SBOM = "application/vnd.cyclonedx+json"


class IncompleteError(Exception):
    """The registry lacks something of the release; the message says what."""


class SignError(Exception):
    """cosign is missing or failed; the message says which."""


def attach_all(references: list[str], bills: Path, parameters: dict[str, str]) -> dict[str, str]:
    """Attaches SBOM and provenance to each image; returns the digests by reference.

    Raises RegistryError, or FileNotFoundError for a missing SBOM.
    """
    digests = {}
    for reference in references:
        image = Image.parse(reference)
        name = f"{image.repository.rpartition('/')[2]}-{image.tag}"
        bill = (bills / f"{name}.cdx.json").read_bytes()
        with Registry(image.host) as registry:
            digests[reference] = digest = registry.digest(image)[0]
            registry.attach(image, SBOM, bill, f"{name}.cdx.json")
            subject = f"{image.host}/{image.repository}"
            built = json.dumps(provenance.statement(subject, digest, parameters)).encode()
            registry.attach(image, provenance.TYPE, built, f"{name}.provenance.json")
        print(f"{reference}@{digest}: SBOM and provenance attached", flush=True)
    return digests


def check(digests: dict[str, str]) -> None:
    """Reads back what refers to each image. Raises IncompleteError and RegistryError."""
    for reference, digest in digests.items():
        image = Image.parse(reference)
        with Registry(image.host) as registry:
            if registry.digest(image)[0] != digest:
                raise IncompleteError(f"{reference} was replaced during the release")
            found = {each.get("artifactType"): each for each in registry.referrers(image)}
            for what, kind in (("SBOM", SBOM), ("provenance", provenance.TYPE)):
                if kind not in found:
                    raise IncompleteError(f"{reference} has no {what} in the registry")
            read = registry.artifact(image.repository, found[provenance.TYPE]["digest"])
        subjects = [each["digest"]["sha256"] for each in json.loads(read)["subject"]]
        if subjects != [digest.removeprefix("sha256:")]:
            raise IncompleteError(f"the provenance of {reference} is about another image")


def sign(reference: str) -> None:
    """Signs by digest with cosign: keyless, or with the key of COSIGN_KEY. Raises SignError."""
    cosign = shutil.which("cosign")
    if cosign is None:
        raise SignError("cosign is not on PATH: https://docs.sigstore.dev/cosign/installation")
    key = os.environ.get("COSIGN_KEY")
    command = [cosign, "sign", "--yes", *([f"--key={key}"] if key else []), reference]
    if subprocess.run(command, check=False).returncode:
        raise SignError(f"cosign could not sign {reference}")


def release(arguments: argparse.Namespace) -> None:
    """Attaches, pushes the chart, and signs all."""
    names = ("BASE_IMAGE", "VARIANT", "TAG", "SOURCE_DATE_EPOCH")
    parameters = {name: os.environ[name] for name in names if os.environ.get(name)}
    digests = attach_all(arguments.images, arguments.sbom, parameters)
    with tempfile.TemporaryDirectory() as scratch:
        archive = package(arguments.registry, digests, Path(scratch), _key(arguments))
        chart = push(archive, arguments.registry)
    check(digests)
    print(f"{chart}: pushed", flush=True)
    if arguments.sign:
        for reference, digest in digests.items():
            sign(f"{reference.rpartition(':')[0]}@{digest}")
        sign(chart)


def _key(arguments: argparse.Namespace) -> SigningKey | None:
    if not arguments.key:
        return None
    if not (arguments.keyring and arguments.key_url):
        raise ValueError("--key needs --keyring and --key-url")
    passphrase = os.environ.get("HELM_PASSPHRASE_FILE", "")
    return SigningKey(arguments.key, Path(arguments.keyring), arguments.key_url, passphrase)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="release", description=__doc__)
    parser.add_argument("--registry", required=True, help="HOST/PATH of the images")
    parser.add_argument("--sbom", type=Path, required=True, help="folder made by `make sbom`")
    parser.add_argument("--sign", action="store_true", help="sign images and chart with cosign")
    parser.add_argument("--key", help="name of the PGP key that signs the chart")
    parser.add_argument("--keyring", help="file with that secret key")
    parser.add_argument("--key-url", help="URL of the public key, for the chart's users")
    parser.add_argument("images", nargs="+", help="pushed images, HOST/PATH/NAME:TAG")
    try:
        release(parser.parse_args())
    except (ChartError, IncompleteError, NoHelmError, RegistryError, SignError) as error:
        sys.exit(f"release: {error}")
    except (ValueError, OSError) as error:
        sys.exit(f"release: {error}")
    except httpx.HTTPError as error:
        sys.exit(f"release: the registry is not reachable: {error}")


if __name__ == "__main__":
    main()
