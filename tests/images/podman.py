"""Podman with a store of its own, so that nothing of it stays on the machine."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

NEEDED = ("podman", "runc", "iptables")
NETWORK = "weir"


class NoContainersError(Exception):
    """Containers cannot run on this machine; the message says why."""


class Podman:
    """A podman whose images, containers and networks live in one folder."""

    def __init__(self, folder: Path) -> None:
        """`folder` has a short path, as podman asks. Raises NoContainersError."""
        missing = [name for name in NEEDED if shutil.which(name) is None]
        if os.geteuid() != 0:
            raise NoContainersError("root is needed, to run the images as another user")
        if missing:
            raise NoContainersError(f"not installed: {', '.join(missing)}")
        self.executable = folder / "podman"
        """A podman that knows this store, for `make build`."""
        options = [
            f"--root={folder}/store",
            f"--runroot={folder}/run",
            f"--tmpdir={folder}/tmp",
            f"--network-config-dir={folder}/networks",
            # The usual runtime, crun, refuses control groups of both versions side by side.
            "--runtime=runc",
            "--cgroup-manager=cgroupfs",
            "--events-backend=file",
        ]
        self.executable.write_text(
            f'#!/bin/sh\nexec {shutil.which("podman")} {" ".join(options)} "$@"\n'
        )
        self.executable.chmod(0o755)

    def __call__(self, *arguments: str, timeout: float = 300) -> str:
        """The output of a command. Raises CalledProcessError, with the tool's message in it."""
        done = subprocess.run(
            [str(self.executable), *arguments],
            stdout=subprocess.PIPE,
            # The services log there.
            stderr=subprocess.STDOUT if arguments[0] == "logs" else subprocess.PIPE,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise CommandError(f"podman {arguments[0]}: {done.stderr.strip()[-1500:]}")
        return done.stdout.strip()

    def inspect(self, name: str) -> dict[str, Any]:
        """All that podman knows of a container or an image."""
        return dict(json.loads(self("inspect", name))[0])

    def run(self, image: str, *command: str) -> str:
        """What a command prints in a container of its own, which is removed afterwards."""
        entrypoint, *arguments = command
        return self(
            "run",
            "--rm",
            *LIMITS,
            "--network=none",
            f"--entrypoint={entrypoint}",
            image,
            *arguments,
        )

    def check(self, image: str) -> None:
        """Makes the network and runs a container in it. Raises NoContainersError."""
        try:
            self("network", "create", NETWORK)
            self("run", "--rm", *LIMITS, f"--network={NETWORK}", image, "true")
        except CommandError as error:
            raise NoContainersError(str(error)) from None

    def close(self) -> None:
        """Removes every container, image and network."""
        self("rm", "--force", "--all", "--time=0")
        self("network", "prune", "--force")
        self("system", "reset", "--force")


class CommandError(Exception):
    """A command failed; the message is the tool's."""


ENOUGH = 4096


def _limit(name: str, kind: int) -> str:
    # Podman raises these limits, which needs a capability that not every root has.
    allowed = resource.getrlimit(kind)[1]
    most = ENOUGH if allowed == resource.RLIM_INFINITY else min(allowed, ENOUGH)
    return f"--ulimit={name}={most}:{most}"


LIMITS = (_limit("nofile", resource.RLIMIT_NOFILE), _limit("nproc", resource.RLIMIT_NPROC))
