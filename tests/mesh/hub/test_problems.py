"""Each way in which the hub cannot be used has a message with the reason and what to do."""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from socket import create_server

import pytest
import trustme
from huggingface_hub import close_session, constants

from mesh.hub.hub_cache import cached_model
from mesh.hub.problems import Destination, HubError, explained
from mesh.hub.reference import HubReference
from tests.mesh.hub.conftest import running, use_hub
from tests.mesh.hub.fake_hub import REPOSITORY, Hub, Refusal

MODEL = HubReference(REPOSITORY)
PATTERNS = ("config.json", "*.safetensors")

pytestmark = pytest.mark.timeout(60)


def problem(wanted: HubReference = MODEL) -> str:
    """The message of a download that fails, with HUB for the address."""
    with pytest.raises(HubError) as caught:
        cached_model(wanted, PATTERNS)
    return str(caught.value).replace(constants.ENDPOINT, "HUB")


GATED = Refusal(403, "GatedRepo")


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (
            GATED,
            "org/model is gated: accept its terms at HUB/org/model, and set HF_TOKEN to an access "
            "token of this account ({})",
        ),
        (
            Refusal(401, "RepoNotFound"),
            "the hub HUB has no model org/model, or it is private: check the name, and set "
            "HF_TOKEN to a token that may read it ({})",
        ),
        (
            Refusal(401, message="Invalid credentials in Authorization header"),
            "the hub HUB refuses the request for org/model with status 401: set HF_TOKEN to a "
            "valid token that may read it ({})",
        ),
        (
            Refusal(403, message="Access to this resource is disabled."),
            "org/model was disabled by its owner or by the hub HUB; choose another model",
        ),
        (
            Refusal(429),
            "the hub HUB limits the requests of this address (status 429): try again later, or "
            "set HF_TOKEN, which has a higher limit ({})",
        ),
        (
            Refusal(502),
            "the hub HUB fails with status 502: try again later, or set HF_ENDPOINT",
        ),
    ],
)
def test_a_refusal_is_explained(
    hub: Hub, refusal: Refusal, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message depends on whether there is a token."""
    hub.refusal = refusal
    assert problem() == message.format("it is not set")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert problem() == message.format("its token has no access")


def test_the_files_of_a_gated_model_are_explained(hub: Hub) -> None:
    """The hub lists them for everyone."""
    hub.refuses_files = GATED
    assert problem().startswith("org/model is gated: accept its terms at HUB/org/model")


def test_a_missing_revision_is_explained(hub: Hub) -> None:
    """By its name."""
    assert problem(MODEL._replace(revision="v9")) == (
        "org/model has no revision v9: name a commit, tag or branch that HUB/org/model lists"
    )


def test_an_unreachable_hub_is_explained(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the system's reason."""
    with closing(create_server(("127.0.0.1", 0))) as unused:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert problem() == (
        "the hub HUB cannot be reached ([Errno 111] Connection refused): check the network, set "
        "HTTPS_PROXY to a proxy or HF_ENDPOINT to a mirror, or name a folder with the model's files"
    )


def test_a_hub_that_does_not_respond_is_explained(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the library's time limit."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    with closing(create_server(("127.0.0.1", 0))) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert problem().startswith("the hub HUB cannot be reached (no response in time): ")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "/cache is full: free some space, or set HF_HOME to a folder on a larger disk; "
            "the download continues where it stopped",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/cache/hub"),
            "/cache/hub cannot be written (Read-only file system): set HF_HOME to a folder that "
            "this process may write",
        ),
    ],
)
def test_a_problem_of_the_disk_is_explained(error: OSError, message: str) -> None:
    """With the folder."""
    place = Destination(Path("/cache"), "set HF_HOME to a folder")
    with pytest.raises(HubError) as caught, explained(MODEL, place):
        raise error
    assert str(caught.value) == message


def test_a_private_authority_is_trusted_by_ssl_cert_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the message names the variable; so does a file that is missing."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with running(Hub(context)) as hub:
        use_hub(monkeypatch, hub.url, tmp_path / "home")
        assert problem().startswith("the certificate of HUB is not trusted (")
        assert "set SSL_CERT_FILE to a file with the certificate of the authority" in problem()

        bundle = tmp_path / "ca.pem"
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
        close_session()
        assert problem() == (
            "the certificates in SSL_CERT_FILE or SSL_CERT_DIR cannot be read (No such file or "
            "directory): name a file or folder with certificates in PEM format"
        )

        authority.cert_pem.write_to_path(str(bundle))
        close_session()
        assert (cached_model(MODEL, PATTERNS) / "model.safetensors").is_file()
    close_session()


@asynccontextmanager
async def connect_proxy(refuses: bool) -> AsyncIterator[tuple[str, list[str]]]:
    """A forward proxy with CONNECT: its address, and the hosts that were asked for."""
    asked: list[str] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, host = head.split()[:2]
        asked.append(f"{method} {host.rpartition(':')[0]}")
        if refuses:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            writer.close()
            return
        _, _, port = host.rpartition(":")
        onward = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(
            relay(reader, onward[1]), relay(onward[0], writer), return_exceptions=True
        )

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://user:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


@pytest.mark.parametrize("refuses", [False, True])
async def test_a_download_uses_the_proxy_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    """By CONNECT, and only by it; a refusal names the proxy without its password."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with running(Hub(context)) as hub:
        use_hub(monkeypatch, hub.url, tmp_path / "home")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        monkeypatch.delenv("NO_PROXY")
        async with connect_proxy(refuses) as (proxy, asked):
            monkeypatch.setenv("HTTPS_PROXY", proxy)
            if refuses:
                message = await asyncio.to_thread(problem)
                assert message == (
                    f"the proxy {proxy.replace('user:secret@', '')} does not connect to HUB (407 "
                    "Proxy Authentication Required): correct HTTPS_PROXY "
                    "(http://NAME:PASSWORD@HOST:PORT), or list the host in NO_PROXY"
                )
                assert hub.requested == []
            else:
                folder = await asyncio.to_thread(cached_model, MODEL, PATTERNS)
                assert (folder / "model.safetensors").is_file()
            assert set(asked) == {"CONNECT localhost"}
            close_session()
