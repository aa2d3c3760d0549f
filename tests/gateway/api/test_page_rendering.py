"""The layout and contrast of the search page: phone widths, light and dark scheme."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.browser import Browser, browser, needs_chromium
from tests.gateway.conftest import StartGateway
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.gateway.pages import act, ask, page, until

pytestmark = [needs_chromium, pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


async def test_layout_on_a_phone_and_contrast_in_both_schemes(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tab: Browser
) -> None:
    """Nothing overflows the screen width; text contrast is at least 7 in both schemes."""
    long = "https://example.org/" + "long" * 60
    orchestrator.script = Script(
        citation_details=(), deltas=["W" * 200], results=[("T" * 90, long, "S" * 300)]
    )
    async with page(start_gateway, tab):
        await ask(tab)
        await until(lambda: "Done" in tab.text("#status"), "the answer is complete")
        with restored(tab):
            for width in (320, 390, 1200):
                await act(lambda width=width: tab.width(width))
                overflow = await act(
                    lambda: tab.run("return document.documentElement.scrollWidth - innerWidth")
                )
                assert overflow <= 0
            backgrounds = set()
            for scheme in ("light", "dark"):
                await act(lambda scheme=scheme: tab.prefers(scheme))
                text, background = await act(lambda: tab.run(COLOURS))
                assert contrast(text, background) >= 7
                backgrounds.add(background)
            assert len(backgrounds) == 2


COLOURS = """
const style = getComputedStyle(document.body);
return [style.color, style.backgroundColor];
"""


@contextmanager
def restored(tab: Browser) -> Iterator[None]:
    """Restore the desktop width and the light scheme afterwards."""
    try:
        yield
    finally:
        tab.width(1200)
        tab.prefers("light")


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours by WCAG 2, 1 to 21."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)` by WCAG 2."""
    channels = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
