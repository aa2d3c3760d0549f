"""A server with the endpoints of the Hugging Face hub that its client uses for downloads."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

REPOSITORY = "org/model"
COMMIT = "c" * 40
OLD_COMMIT = "d" * 40
WEIGHTS = bytes(range(256)) * 3000
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
    "tokenizer_config.json": b'{"chat_template": ""}',
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tools.jinja": b"{{ tools }}",
    "model.safetensors": WEIGHTS,
    "consolidated.safetensors": b"the same again",
    "model.fp16.safetensors": b"the same in another type",
    "pytorch_model.bin": b"a pickle",
    "modeling_code.py": b"import os",
}
_LARGE = (".safetensors", ".bin", ".gguf")


class Refusal(NamedTuple):
    """The response to every request."""

    status: int
    code: str = ""
    message: str = ""


class Hub(ThreadingHTTPServer):
    """One repository with a current commit, `main`, and an older one, the tag `v1`."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self._scheme = "http" if context is None else "https"
        self.files = dict(FILES)
        self.old_files = {**FILES, "config.json": b'{"old": true}'}
        self.served: dict[str, bytes] = {}
        """Contents that differ from the metadata."""
        self.refusal: Refusal | None = None
        self.refuses_files: Refusal | None = None
        """The response to requests for files only, as of a gated model."""
        self.requested: list[tuple[str, str, str | None]] = []
        """Method, path and range of every request."""
        self.break_after: dict[str, int] = {}
        """Bytes of a file after which the connection is closed, once."""
        self.hold = threading.Event()
        """Set by default; while it is not, large files wait, and broken connections stay open."""
        self.hold.set()

    @property
    def url(self) -> str:
        """The address, for HF_ENDPOINT."""
        return f"{self._scheme}://localhost:{self.server_address[1]}"

    def ranges(self, name: str) -> list[str | None]:
        """The requested ranges of a file; None for the whole file."""
        return [r for method, path, r in self.requested if method == "GET" and path.endswith(name)]

    def handle_error(self, *_: object) -> None:
        """Clients that leave are not reported."""


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Does not log."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server
        path = unquote(urlsplit(self.path).path)
        hub.requested.append((self.command, self.path, self.headers.get("Range")))
        api, _, rest = path.partition(f"{REPOSITORY}/")
        kind, _, rest = rest.partition("/")
        revision, _, name = rest.partition("/")
        commit = {"main": COMMIT, "v1": OLD_COMMIT}.get(revision, revision)
        files = hub.files if commit == COMMIT else hub.old_files
        is_api = api.endswith("/api/models/")
        refusal = hub.refusal or self._not_found(revision, commit)
        if refusal is None and not is_api:
            refusal = hub.refuses_files or (
                None if name in files else Refusal(404, "EntryNotFound")
            )
        if refusal is not None:
            self._refuse(refusal)
        elif is_api:
            self._json(_info(commit, files) if kind == "revision" else _tree(files))
        else:
            self._file(name, files[name], commit)

    @staticmethod
    def _not_found(revision: str, commit: str) -> Refusal | None:
        if not revision:
            return Refusal(404, "RepoNotFound")
        return None if commit in (COMMIT, OLD_COMMIT) else Refusal(404, "RevisionNotFound")

    def _refuse(self, refusal: Refusal) -> None:
        headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
        self._send(refusal.status, b"", {name: value for name, value in headers.items() if value})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, expected: bytes, commit: str) -> None:
        data = self.server.served.get(name, expected)
        wanted = self.headers.get("Range", "bytes=0-").removeprefix("bytes=")
        begin = int(wanted.partition("-")[0])
        is_large = name.endswith(_LARGE)
        etag = hashlib.sha256(expected).hexdigest() if is_large else _blob_id(expected)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
        if "Range" in self.headers:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        status = 206 if "Range" in self.headers else 200
        limit = self.server.break_after.pop(name, None) if self.command == "GET" else None
        if self.command == "GET" and is_large and limit is None:
            self.server.hold.wait(30)
        self._send(status, data[begin:], headers, limit)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], limit: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:limit])
        if limit is not None:
            self.server.hold.wait(30)
            self.close_connection = True


def _info(commit: str, files: dict[str, bytes]) -> dict[str, object]:
    siblings = []
    for name, content in files.items():
        file: dict[str, object] = {"rfilename": name, "size": len(content)}
        file["blobId"] = _blob_id(content)
        if name.endswith(_LARGE):
            sha256 = hashlib.sha256(content).hexdigest()
            file["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
        siblings.append(file)
    return {"_id": "1", "id": REPOSITORY, "sha": commit, "siblings": siblings}


def _tree(files: dict[str, bytes]) -> list[dict[str, object]]:
    return [
        {"type": "file", "path": name, "size": len(content), "oid": _blob_id(content)}
        for name, content in files.items()
    ]


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
