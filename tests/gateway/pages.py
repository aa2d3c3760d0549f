"""Helpers that open the search page in a browser, on a gateway with a fake orchestrator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from selenium.webdriver.common.keys import Keys

from tests.browser import Browser
from tests.gateway.conftest import StartGateway
from tests.gateway.fakes import Script
from tests.gateway.proxy import Proxy, proxy

T = TypeVar("T")

WORDS = [f"word{number} " for number in range(60)]


def words(**fields: object) -> Script:
    """A script whose answer has 60 words and no citations."""
    return Script(deltas=WORDS, citation_details=(), **fields)  # type: ignore[arg-type]


@asynccontextmanager
async def page(
    start_gateway: StartGateway, tab: Browser, **settings: object
) -> AsyncIterator[Proxy]:
    """Open the page through a proxy that can drop connections."""
    async with start_gateway(**settings) as server, proxy(server.port) as network:
        tab.errors()
        await act(lambda: tab.driver.get(f"http://127.0.0.1:{network.port}/"))
        yield network
        await act(lambda: tab.driver.get("about:blank"))


async def act(call: Callable[[], T]) -> T:
    """Run a blocking browser call in a thread, so that the gateway keeps running."""
    return await asyncio.to_thread(call)


async def until(call: Callable[[], T], what: str, seconds: float = 60.0) -> T:
    """Poll `call` until its result is true, and return it."""
    try:
        async with asyncio.timeout(seconds):
            while not (answer := await act(call)):
                await asyncio.sleep(0.05)
            return answer
    except TimeoutError:
        raise AssertionError(f"never happened: {what}") from None


async def ask(tab: Browser, query: str = "weir") -> None:
    """Type a query and press Enter."""
    await act(lambda: tab.one("#query").send_keys(query + Keys.ENTER))
