"""Downloads with huggingface_hub from a fake hub on loopback."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = "maker/tiny"
SHA = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": bytes(range(256)) * 48 * 1024,
    "model-00002-of-00002.safetensors": bytes(reversed(range(256))) * 4096,
    "pytorch_model.bin": b"never",
}
SCRIPT = """
import sys
from mesh.hub.model_folder import ModelNotFoundError, model_folder
try:
    print(model_folder(sys.argv[1], ["*.json", "*.safetensors"]))
except ModelNotFoundError as error:
    sys.exit(f"not found: {error}")
"""


class Hub(ThreadingHTTPServer):
    """Serves one repository; can break a connection."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requested: list[tuple[str, str, str | None]] = []
        """Method, path and range of every request."""
        self.break_after: dict[str, int] = {}
        """Number of bytes of a file after which the connection is closed, once."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def ranges(self, name: str) -> list[str | None]:
        """The requested ranges of a file; None for the whole file."""
        return [r for method, path, r in self.requested if method == "GET" and path.endswith(name)]


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Does not log."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        self.server.requested.append((self.command, self.path, self.headers.get("Range")))
        path = self.path.partition("?")[0]
        api = f"/api/models/{REPOSITORY}"
        if path == f"{api}/revision/main":
            names = [{"rfilename": name} for name in FILES]
            self._json({"id": REPOSITORY, "sha": SHA, "siblings": names})
        elif path == f"{api}/tree/{SHA}":
            self._json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                    for name, data in FILES.items()
                ]
            )
        elif path.startswith(f"/{REPOSITORY}/resolve/{SHA}/"):
            self._file(path.rpartition("/")[2], with_body)
        else:
            self._send(404, b"", {})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, with_body: bool) -> None:
        data = FILES[name]
        wanted = self.headers.get("Range", "bytes=0-").removeprefix("bytes=")
        begin = int(wanted.partition("-")[0])
        headers = {
            "ETag": f'"{_etag(data)}"',
            "X-Repo-Commit": SHA,
            "Accept-Ranges": "bytes",
            "Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}",
        }
        status = 206 if "Range" in self.headers else 200
        limit = self.server.break_after.pop(name, None) if with_body else None
        self._send(status, data[begin:], headers, with_body=with_body, limit=limit)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
        *,
        with_body: bool = True,
        limit: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body[:limit])
        if limit is not None:
            self.close_connection = True


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub that runs during the test."""
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def download(hub: Hub, cache: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run in a separate process, as the library reads its variables when it is imported."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, REPOSITORY],
        env={
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "PATH": "/usr/bin:/bin",
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def contents(done: subprocess.CompletedProcess[str]) -> dict[str, bytes]:
    """The files in the printed folder."""
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_download_resumes_shows_progress_and_is_kept(hub: Hub, tmp_path: Path) -> None:
    """An interrupted download is resumed; offline, the hub is not contacted."""
    name = "model-00001-of-00002.safetensors"
    hub.break_after[name] = 11 * 2**20
    done = download(hub, tmp_path)
    expected = {name: data for name, data in FILES.items() if not name.endswith(".bin")}
    assert contents(done) == expected
    first, *others = hub.ranges(name)
    assert first is None
    assert others, "the file was requested only once"
    begin = int((others[0] or "bytes=0-").removeprefix("bytes=").partition("-")[0])
    assert 0 < begin <= 11 * 2**20, "it began anew"
    assert not hub.ranges("pytorch_model.bin"), "no other file is requested"
    assert "100%" in done.stderr, "no progress bar"

    hub.requested.clear()
    assert contents(download(hub, tmp_path)) == expected
    assert not any(hub.ranges(name) for name in FILES), "whole files are kept"

    hub.requested.clear()
    assert contents(download(hub, tmp_path, HF_HUB_OFFLINE="1")) == expected
    assert hub.requested == []


def test_offline_without_the_files_is_reported_without_requests(hub: Hub, tmp_path: Path) -> None:
    """One line, and no request."""
    done = download(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert done.stderr.startswith(f"not found: model '{REPOSITORY}' is not a folder")
    assert hub.requested == []
