"""Opens the search page in a browser, against a gateway with a fake orchestrator."""

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
    """An answer of many words, none of them cited."""
    return Script(deltas=WORDS, citation_details=(), **fields)  # type: ignore[arg-type]


@asynccontextmanager
async def page(
    start_gateway: StartGateway, tab: Browser, **settings: object
) -> AsyncIterator[Proxy]:
    """The page, opened through a proxy that can lose its connections."""
    async with start_gateway(**settings) as server, proxy(server.port) as network:
        tab.errors()
        await act(lambda: tab.driver.get(f"http://127.0.0.1:{network.port}/"))
        yield network
        await act(lambda: tab.driver.get("about:blank"))


async def act(call: Callable[[], T]) -> T:
    """What a blocking call of the browser gives, while the gateway runs on."""
    return await asyncio.to_thread(call)


async def until(call: Callable[[], T], what: str, seconds: float = 60.0) -> T:
    """Asks until the answer is true."""
    try:
        async with asyncio.timeout(seconds):
            while not (answer := await act(call)):
                await asyncio.sleep(0.05)
            return answer
    except TimeoutError:
        raise AssertionError(f"never happened: {what}") from None


async def ask(tab: Browser, query: str = "weir") -> None:
    """Types a query and presses Enter."""
    await act(lambda: tab.one("#query").send_keys(query + Keys.ENTER))
