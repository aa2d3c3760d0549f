"""A fake hub on loopback, and huggingface_hub in this process with its address."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from tests.mesh.hub.fake_hub import Hub


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """Serves requests in a thread."""
    with hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,))
        thread.start()
        yield hub
        hub.hold.set()
        hub.shutdown()
        thread.join()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, home: Path) -> None:
    """What HF_ENDPOINT and HF_HOME do; the library reads them when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "SSL_CERT_FILE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("no_proxy", raising=False)
    close_session()  # a client keeps the proxies and certificates that it started with


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that runs during the test; its client in this process uses it."""
    with running(Hub()) as server:
        use_hub(monkeypatch, server.url, tmp_path / "home")
        yield server
    close_session()
