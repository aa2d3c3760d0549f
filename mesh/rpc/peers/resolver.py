"""Name resolution by the system's resolver, in threads that never delay the process's exit."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Awaitable, Callable

Resolve = Callable[[str], Awaitable[set[str]]]
"""Returns the addresses, each HOST:PORT, of a HOST:PORT. Raises OSError."""


async def resolve(target: str) -> set[str]:
    """The addresses of `target` in the system's name service. Raises OSError if there are none."""
    host, _, port = target.rpartition(":")
    host = host.strip("[]")
    if _is_address(host):
        return {target}
    hosts = await _in_thread(host, int(port))
    # A name with IPv4 and IPv6 addresses lists the same machines twice.
    preferred = {each for each in hosts if ":" not in each} or hosts
    return {f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in preferred}


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _in_thread(host: str, port: int) -> set[str]:
    """`getaddrinfo` in a daemon thread.

    A lookup that gets no answer lasts for tens of seconds. The threads of an executor, and the
    lookups of the event loop, would delay the exit of the process by this time.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[set[str]] = loop.create_future()

    def deliver(hosts: set[str], error: OSError | None) -> None:
        if answer.done():
            return  # the caller was cancelled
        if error is None:
            answer.set_result(hosts)
        else:
            answer.set_exception(error)

    def look_up() -> None:
        hosts: set[str] = set()
        problem: OSError | None = None
        try:
            records = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            hosts = {str(record[4][0]) for record in records}
        except UnicodeError:
            problem = OSError(f"{host} is not a valid host name")
        except OSError as error:
            problem = error
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(deliver, hosts, problem)

    threading.Thread(target=look_up, name=f"resolve {host}", daemon=True).start()
    return await answer
