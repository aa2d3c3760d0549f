"""Downloads with the real client from a fake server with the hub's API."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from inference.model import file_patterns
from mesh.hub.download import MARKER, PATTERNS
from tokenizer import files as tokenizer_files

COMMIT = "c" * 40
CONTENTS = {
    "config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
    "tokenizer_config.json": b'{"chat_template": ""}',
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tools.jinja": b"{{ tools }}",
    "model.safetensors": b"weights" * 1000,
    "consolidated.safetensors": b"the same again",
    "pytorch_model.bin": b"a pickle",
    "modeling_evil.py": b"import os",
}
UNREACHABLE_HUB = "http://hub.invalid"
SHA256 = hashlib.sha256(CONTENTS["model.safetensors"]).hexdigest()

pytestmark = pytest.mark.timeout(120)


class Hub:
    """One model, `org/model`. `served` may differ from the metadata."""

    def __init__(self) -> None:
        self.served = dict(CONTENTS)
        self.requested: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.requested.append(f"{self.command} {self.path}")
                path = urlsplit(self.path).path  # a proxy gets the whole URL
                if path.startswith("/api/models/org/model/revision/"):
                    self._answer(json.dumps(hub.info()).encode(), "application/json", "")
                    return
                if path.startswith("/api/models/org/model/tree/"):
                    self._answer(json.dumps(hub.tree()).encode(), "application/json", "")
                    return
                name = path.removeprefix(f"/org/model/resolve/{COMMIT}/")
                if name not in hub.served:
                    self.send_error(404)
                    return
                etag = hashlib.sha256(CONTENTS[name]).hexdigest()
                self._answer(hub.served[name], "application/octet-stream", etag)

            def _answer(self, body: bytes, kind: str, etag: str) -> None:
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.send_header("x-repo-commit", COMMIT)
                if etag:
                    self.send_header("etag", f'"{etag}"')
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def info(self) -> dict[str, object]:
        """The hub's description of a model with its files."""
        siblings = []
        for name, content in CONTENTS.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            file = {"rfilename": name, "size": len(content), "blobId": blob}
            if name.endswith((".safetensors", ".bin")):
                sha256 = hashlib.sha256(content).hexdigest()
                file["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            siblings.append(file)
        return {"_id": "1", "id": "org/model", "sha": COMMIT, "siblings": siblings}

    def tree(self) -> list[dict[str, object]]:
        """The hub's list of the files of a commit."""
        return [
            {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
            for name, content in CONTENTS.items()
        ]


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever)
    thread.start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    thread.join()


def run(
    hub: Hub, folder: Path, *arguments: str, through_proxy: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run the command as the init container does; the fake hub can also be the proxy."""
    command = [sys.executable, "-m", "mesh.hub.download", "--model=org/model", f"--folder={folder}"]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder.parent / "home"),
        "NO_PROXY": "127.0.0.1",
    }
    if through_proxy:
        environment |= {"HF_ENDPOINT": UNREACHABLE_HUB, "HTTP_PROXY": hub.url}
    return subprocess.run(
        [*command, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def names_in(folder: Path) -> set[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {name.as_posix() for name in found if not name.parts[0].startswith(".")}


def test_a_model_is_downloaded_once(hub: Hub, tmp_path: Path) -> None:
    """Weights and tokenizer, no pickle and no code; the second time the hub is not contacted."""
    folder = tmp_path / "model"
    done = run(hub, folder, f"--sha256=model.safetensors={SHA256}")
    assert done.returncode == 0, done.stderr
    excluded = {"consolidated.safetensors", "pytorch_model.bin", "modeling_evil.py"}
    assert names_in(folder) == CONTENTS.keys() - excluded
    assert (folder / "model.safetensors").read_bytes() == CONTENTS["model.safetensors"]
    hub.requested.clear()
    again = run(hub, folder, f"--sha256=model.safetensors={SHA256}")
    assert again.returncode == 0, again.stderr
    assert "already there" in again.stdout
    assert hub.requested == []


def test_a_tokenizer_comes_without_weights(hub: Hub, tmp_path: Path) -> None:
    """A few small files."""
    folder = tmp_path / "tokenizer"
    assert run(hub, folder, "--what=tokenizer").returncode == 0
    assert "tokenizer.json" in names_in(folder)
    assert not [name for name in names_in(folder) if name.endswith(".safetensors")]


def test_a_download_uses_the_proxy_of_the_environment(hub: Hub, tmp_path: Path) -> None:
    """A cluster may have no other way to the hub."""
    folder = tmp_path / "tokenizer"
    done = run(hub, folder, "--what=tokenizer", through_proxy=True)
    assert done.returncode == 0, done.stderr
    assert "tokenizer.json" in names_in(folder)
    assert hub.requested
    assert all(f" {UNREACHABLE_HUB}/" in each for each in hub.requested)


def test_a_missing_file_is_downloaded_again(hub: Hub, tmp_path: Path) -> None:
    """An incomplete model does not count as present."""
    folder = tmp_path / "model"
    assert run(hub, folder).returncode == 0
    (folder / "model.safetensors").unlink()
    done = run(hub, folder)
    assert "downloaded" in done.stdout, done.stderr
    assert (folder / "model.safetensors").read_bytes() == CONTENTS["model.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_modified_file_is_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    """Large files by the hub's SHA-256, small ones by git's blob id; no marker is written."""
    hub.served[name] = bytes(len(CONTENTS[name]))
    done = run(hub, tmp_path / "model")
    assert done.returncode == 1
    assert f"{name} differs from the hub's file" in done.stderr
    assert not (tmp_path / "model" / MARKER).exists()


def test_given_checksums_are_verified(hub: Hub, tmp_path: Path) -> None:
    """Also for files that are present already."""
    assert run(hub, tmp_path / "model").returncode == 0
    done = run(hub, tmp_path / "model", f"--sha256=model.safetensors={'0' * 64}")
    assert done.returncode == 1
    assert f"has the SHA-256 {SHA256}, but" in done.stderr
    done = run(hub, tmp_path / "model", f"--sha256=other.safetensors={'0' * 64}")
    assert "no such file" in done.stderr


def test_an_unreachable_hub_is_reported(hub: Hub, tmp_path: Path) -> None:
    """One line, which mentions the token for gated models."""
    hub.served.clear()
    done = run(hub, tmp_path / "model")
    assert done.returncode == 1
    assert "could not be downloaded from the hub" in done.stderr
    assert "HF_TOKEN" in done.stderr


@pytest.mark.parametrize(
    ("what", "patterns"),
    [
        ("model", file_patterns.FILE_PATTERNS),
        ("model", tokenizer_files.FILE_PATTERNS),
        ("tokenizer", tokenizer_files.FILE_PATTERNS),
    ],
)
def test_all_files_that_services_read_are_downloaded(what: str, patterns: tuple[str, ...]) -> None:
    """The patterns of the services are among those of the download."""
    for pattern in patterns:
        name = pattern.replace("*", "some")
        assert any(fnmatch(name, each) for each in PATTERNS[what]), name
