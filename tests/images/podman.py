"""Podman with a temporary store, which is removed after the tests."""

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
    """A podman whose images, containers and networks are in one folder."""

    def __init__(self, folder: Path) -> None:
        """`folder` must have a short path, which podman requires. Raises NoContainersError."""
        missing = [name for name in NEEDED if shutil.which(name) is None]
        if os.geteuid() != 0:
            raise NoContainersError("the tests must run as root, to run containers as another user")
        if missing:
            raise NoContainersError(f"not installed: {', '.join(missing)}")
        self.executable = folder / "podman"
        """A script that runs podman with this store, for `make build`."""
        options = [
            f"--root={folder}/store",
            f"--runroot={folder}/run",
            f"--tmpdir={folder}/tmp",
            f"--network-config-dir={folder}/networks",
            # The default runtime, crun, does not support hosts with both cgroup versions.
            "--runtime=runc",
            "--cgroup-manager=cgroupfs",
            "--events-backend=file",
        ]
        self.executable.write_text(
            f'#!/bin/sh\nexec {shutil.which("podman")} {" ".join(options)} "$@"\n'
        )
        self.executable.chmod(0o755)

    def __call__(self, *arguments: str, timeout: float = 300) -> str:
        """Runs a command and returns its output. Raises CommandError with podman's message."""
        done = subprocess.run(
            [str(self.executable), *arguments],
            stdout=subprocess.PIPE,
            # The services log to stderr.
            stderr=subprocess.STDOUT if arguments[0] == "logs" else subprocess.PIPE,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise CommandError(f"podman {arguments[0]}: {done.stderr.strip()[-1500:]}")
        return done.stdout.strip()

    def inspect(self, name: str) -> dict[str, Any]:
        """The output of `podman inspect` for a container or an image."""
        return dict(json.loads(self("inspect", name))[0])

    def run(self, image: str, *command: str) -> str:
        """Runs a command in a temporary container; returns its output."""
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
        """Creates the network and runs a container in it. Raises NoContainersError."""
        try:
            self("network", "create", NETWORK)
            self("run", "--rm", *LIMITS, f"--network={NETWORK}", image, "true")
        except CommandError as error:
            raise NoContainersError(str(error)) from None

    def close(self) -> None:
        """Removes all containers, images and networks."""
        self("rm", "--force", "--all", "--time=0")
        self("network", "prune", "--force")
        self("system", "reset", "--force")


class CommandError(Exception):
    """A command failed; the message is podman's."""


MAX_LIMIT = 4096


def _limit(name: str, kind: int) -> str:
    # By default podman raises these limits, which needs a capability that root may lack.
    allowed = resource.getrlimit(kind)[1]
    limit = MAX_LIMIT if allowed == resource.RLIM_INFINITY else min(allowed, MAX_LIMIT)
    return f"--ulimit={name}={limit}:{limit}"


LIMITS = (_limit("nofile", resource.RLIMIT_NOFILE), _limit("nproc", resource.RLIMIT_NPROC))
