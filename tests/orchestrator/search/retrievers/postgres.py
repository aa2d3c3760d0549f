"""Starts a temporary PostgreSQL server on a free port."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
BIN = next((folder for folder in _FOLDERS if (folder / "initdb").exists()), None)

needs_postgres = pytest.mark.skipif(BIN is None, reason="needs postgresql (apt-get install it)")


@contextmanager
def postgres() -> Iterator[str]:
    """Yields the URL of an empty database, which is deleted afterwards."""
    # Not in pytest's temporary folder: pytest makes that folder private on each start, also of a
    # nested run, and the server runs as another user.
    with tempfile.TemporaryDirectory(prefix="weir-postgres-") as folder:
        yield from _run(Path(folder))


def _run(folder: Path) -> Iterator[str]:
    assert BIN is not None
    user = pwd.getpwnam("postgres") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    data = folder / "data"
    data.mkdir(mode=0o700)
    if os.getuid() == 0:
        # The server refuses to run as root, and its user needs access to the folder.
        shutil.chown(data, user.pw_uid, user.pw_gid)
        folder.chmod(0o711)
    become = {"user": user.pw_uid, "group": user.pw_gid} if os.getuid() == 0 else {}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    subprocess.run(
        [BIN / "initdb", "-D", data, "-U", "weir", "-A", "trust", "--no-sync", "-E", "UTF8"],
        check=True,
        capture_output=True,
        timeout=120,
        cwd="/",
        **become,
    )
    options = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-p", str(port)]
    options += ["-k", str(data)]
    log = (folder / "log").open("wb")
    server = subprocess.Popen(
        [BIN / "postgres", "-D", data, *options], stdout=log, stderr=log, cwd="/", **become
    )
    try:
        subprocess.run(
            [shutil.which("timeout") or "timeout", "60", "bash", "-c",
             f"until {BIN}/pg_isready -q -h 127.0.0.1 -p {port}; do sleep 0.1; done"],
            check=True,
        )  # fmt: skip
        yield f"postgresql://weir@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(30)
        log.close()
