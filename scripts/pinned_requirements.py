"""Prints the packages of constraints.txt in the two forms that pip can use.

    pinned_requirements.py plain [CONSTRAINTS]           the versions, for `pip --constraint`
    pinned_requirements.py hashed REPORT [CONSTRAINTS]   the packages that a `pip install --dry-run
                                                         --report` would install, with the hashes of
                                                         their files, for `pip --require-hashes`

pip itself refuses constraints with hashes unless every requirement is pinned. Only the standard
library is imported: the script also runs during the build of the images.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)")
_HASH = re.compile(r"--hash=(sha256:[0-9a-f]{64})")
_SEPARATORS = re.compile(r"[-_.]+")


class Pin(NamedTuple):
    """One package of constraints.txt."""

    name: str
    version: str
    hashes: Sequence[str]
    """Of all its files: wheels of every platform, and the source archive."""


class UnpinnedError(Exception):
    """A package, or its version, is not in constraints.txt, or has no hash."""


def read_pins(text: str) -> Iterator[Pin]:
    """The pins of a requirements file, in its order."""
    joined = text.replace("\\\n", " ")
    for line in joined.splitlines():
        found = _PIN.match(line)
        if found:
            yield Pin(found["name"], found["version"], _HASH.findall(line))


def plain(text: str) -> str:
    """The pins without hashes."""
    return "".join(f"{pin.name}=={pin.version}\n" for pin in read_pins(text))


def hashed(text: str, report: dict[str, Any]) -> str:
    """Requirements with hashes for the packages of pip's report. Raises UnpinnedError."""
    pins = {_normalized(pin.name): pin for pin in read_pins(text)}
    lines = []
    for item in report["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        pin = pins.get(_normalized(name))
        # A local version, such as 2.13.0+cpu, is a build of the pinned one; its hash is listed too.
        if pin is None or pin.version not in (version, version.partition("+")[0]):
            pinned = "not at all" if pin is None else f"at {pin.version}"
            raise UnpinnedError(f"{name} {version} is pinned {pinned}; run `make constraints`")
        if not pin.hashes:
            raise UnpinnedError(
                f"{name} {version} is pinned without hashes; run `make constraints`"
            )
        lines.append(" ".join([f"{name}=={version}", *(f"--hash={each}" for each in pin.hashes)]))
    return "".join(f"{line}\n" for line in lines)


def _normalized(name: str) -> str:
    return _SEPARATORS.sub("-", name).lower()


def main(argv: Sequence[str]) -> None:
    """The command line."""
    form, *arguments = argv or [""]
    if form not in ("plain", "hashed"):
        sys.exit(__doc__)
    report = arguments.pop(0) if form == "hashed" else None
    path = arguments[0] if arguments else "constraints.txt"
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if report is None:
        print(plain(text), end="")
        return
    with open(report, encoding="utf-8") as file:
        content = json.load(file)
    try:
        print(hashed(text, content), end="")
    except UnpinnedError as error:
        sys.exit(f"{path}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
