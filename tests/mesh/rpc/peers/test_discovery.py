"""Lookups of names: their interval, their failures, and their threads."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time

import pytest

from mesh.rpc.peers import discovery
from mesh.rpc.peers.discovery import Discovery
from mesh.rpc.peers.resolver import resolve
from mesh.rpc.tls import TlsError
from tests.helpers import eventually

pytestmark = pytest.mark.timeout(20)


class Resolver:
    """Answers as the test says; None: never."""

    def __init__(self) -> None:
        self.answer: set[str] | None = set()
        self.num_lookups = 0

    async def __call__(self, target: str) -> set[str]:
        self.num_lookups += 1
        if self.answer is None:
            await asyncio.Event().wait()
        if not self.answer:
            raise OSError("Name or service not known")
        return self.answer or set()


async def test_lookups_are_frequent_only_while_a_peer_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loss makes them frequent, `hurry` causes one at once."""
    monkeypatch.setattr(discovery, "URGENT_SECONDS", 0.01)
    resolver, complete = Resolver(), False
    resolver.answer = {"10.0.0.1:7"}
    found = Discovery(["name:7"], 60, resolver)
    running = asyncio.create_task(found.run(lambda: None, lambda: complete))
    await eventually(lambda: resolver.num_lookups > 5, "the name is looked up again and again")
    assert found.addresses == {"10.0.0.1:7": "name:7"}
    complete = True
    await asyncio.sleep(0.05)
    before = resolver.num_lookups
    await asyncio.sleep(0.1)
    assert resolver.num_lookups == before
    found.hurry()
    await eventually(lambda: resolver.num_lookups == before + 1, "it is looked up at once")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_lookups_go_on_after_an_unexpected_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a certificate that cannot be read when a channel to a new address is opened."""
    monkeypatch.setattr(discovery, "URGENT_SECONDS", 0.01)
    resolver, num_changes = Resolver(), 0
    resolver.answer = {"10.0.0.1:7"}

    def fail_once() -> None:
        nonlocal num_changes
        num_changes += 1
        if num_changes == 1:
            raise TlsError("cannot read ca.crt")

    running = asyncio.create_task(
        Discovery(["name:7"], 0.01, resolver).run(fail_once, lambda: False)
    )
    await eventually(lambda: num_changes > 2, "the addresses are applied again")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_failing_lookup_is_a_warning_only_when_it_lasts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At a first install names are unknown for a while; each outage is logged once a level."""
    monkeypatch.setattr(discovery, "URGENT_SECONDS", 0.01)
    monkeypatch.setattr(discovery, "GRACE_SECONDS", 0.2)
    caplog.set_level(logging.INFO, "mesh.rpc.peers")

    def logged() -> list[tuple[str, str]]:
        return [(record.levelname, record.message) for record in caplog.records]

    resolver = Resolver()
    found = Discovery(["name:7"], 0.01, resolver)
    running = asyncio.create_task(found.run(lambda: None, lambda: False))
    await eventually(lambda: resolver.num_lookups > 3, "it fails")
    expected = [("INFO", "name resolution failed")]
    assert logged() == expected
    expected += [("WARNING", "name resolution failed")]
    await eventually(lambda: logged() == expected, "it lasts")
    assert found.failing
    resolver.answer = {"10.0.0.1:7"}
    expected += [("INFO", "name resolved")]
    await eventually(lambda: logged() == expected, "it is resolved")
    assert not found.failing
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(
    ("target", "addresses"),
    [("127.0.0.1:7", {"127.0.0.1:7"}), ("[::1]:7", {"[::1]:7"}), ("two:7", {"10.0.0.1:7"})],
)
async def test_addresses_are_unique_and_of_one_family(
    monkeypatch: pytest.MonkeyPatch, target: str, addresses: set[str]
) -> None:
    """An address is its own answer; a name with both families has IPv4 addresses only."""

    def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
        found = [("10.0.0.1", port), ("10.0.0.1", port), ("fd00::1", port, 0, 0)]
        return [(0, 0, 0, "", address) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert await resolve(target) == addresses


def test_a_lookup_without_an_answer_does_not_delay_the_exit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The resolver waits for tens of seconds; the event loop ends at once."""
    release, began = threading.Event(), threading.Event()

    def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
        began.set()
        release.wait(15)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def look_up() -> None:
        running = asyncio.create_task(resolve("name:7"))
        await asyncio.to_thread(began.wait)
        running.cancel()

    started = time.monotonic()
    asyncio.run(look_up())
    assert time.monotonic() - started < 5
    release.set()
