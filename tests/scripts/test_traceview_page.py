"""The page of the trace viewer in a real browser."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.traceview.store import Store
from scripts.traceview.web import web_server
from tests.browser import Browser, browser, needs_chromium
from tests.scripts.traces import make_trace

pytestmark = [needs_chromium, pytest.mark.slow, pytest.mark.timeout(180)]

NUM_TRACES = 2000
OPEN_SECONDS = 2.0
WIDE, PHONE = 1280, 390


@pytest.fixture(scope="module")
def store() -> Store:
    """2,000 searches, of which each 100th failed over and the newest one failed."""
    store = Store(NUM_TRACES)
    for number in range(NUM_TRACES):
        store.add(make_trace(number, failed=number == NUM_TRACES - 1))
    return store


@pytest.fixture(scope="module")
def url(store: Store) -> Iterator[str]:
    with web_server("127.0.0.1:0", store) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(opened: Browser, url: str) -> Browser:
    """The page, opened wide."""
    opened.width(WIDE)
    opened.driver.get(url)
    until(lambda: opened.all("#rows .row"), "a trace is shown")
    return opened


def until(call: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Poll `call` until its result is true."""
    end = time.monotonic() + seconds
    while not call():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.02)


def num_listed(tab: Browser) -> int:
    number: int = tab.run("return document.querySelectorAll('#list li').length")
    return number


def badges(tab: Browser) -> list[str]:
    """Texts of the badges in the list, which may be drawn anew at any time."""
    script = "return [...document.querySelectorAll('#list li .badge')].map(each => each.innerText)"
    texts: list[str] = tab.run(script)
    return texts


def enter(tab: Browser, field: str, value: str) -> None:
    """Set a filter as a person does."""
    script = """
    const field = document.getElementById(arguments[0]);
    field.value = arguments[1];
    field.dispatchEvent(new Event("input", {bubbles: true}));
    """
    tab.run(script, field, value)


def cpu_seconds(tab: Browser) -> float:
    """CPU time of the tasks of the page since it was opened."""
    metrics = tab.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))


def test_thousands_of_traces_open_in_time(opened: Browser, url: str) -> None:
    """CPU time of the page and of the server, which other processes do not change."""
    opened.width(WIDE)
    opened.driver.get("about:blank")
    opened.driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    began, server = cpu_seconds(opened), time.process_time()
    opened.driver.get(url)
    until(lambda: num_listed(opened) == NUM_TRACES and opened.all("#rows .row"), "all is shown")
    used = cpu_seconds(opened) - began + time.process_time() - server
    opened.driver.execute_cdp_cmd("Performance.disable", {})
    assert used < OPEN_SECONDS


def test_the_list_is_searched_and_filtered(tab: Browser) -> None:
    """By text, outcome and duration; the address has the filters, so that they can be shared."""
    assert tab.text("#count") == "2000 traces"
    enter(tab, "outcome", "failovers")
    until(lambda: num_listed(tab) == 20, "failovers are listed")
    assert all("failed over" in each for each in badges(tab)[:3])
    enter(tab, "q", "request-1900")
    until(lambda: num_listed(tab) == 1, "one trace is listed")
    assert tab.driver.current_url.endswith("?q=request-1900&outcome=failovers")
    tab.driver.refresh()
    until(lambda: num_listed(tab) == 1, "the filters are applied again")
    enter(tab, "q", "")
    enter(tab, "outcome", "")
    enter(tab, "min_ms", "2000")
    until(lambda: badges(tab) == ["failed"], "slow ones")
    enter(tab, "max_ms", "2000")
    until(lambda: tab.text("#count") == "No trace matches.", "nothing matches")
    assert tab.errors() == []


def test_spans_collapse(tab: Browser) -> None:
    """One by its mark or its keys, or all; the details show the time outside of the children."""

    def num_shown() -> int:
        return sum(row.is_displayed() for row in tab.all("#rows .row"))

    whole = num_shown()
    tab.one("#rows .row .toggle").click()
    assert num_shown() == 1
    assert tab.one("#rows .row").get_attribute("aria-expanded") == "false"
    tab.one("#rows .row").send_keys("\ue014")  # right arrow
    assert num_shown() == whole
    tab.one("#collapse").click()
    assert num_shown() == 1
    tab.one("#expand").click()
    assert num_shown() == whole
    assert "outside of its children" in tab.text("#detail p")


def test_ticks_are_round(tab: Browser) -> None:
    """Also for a duration that is not."""
    labels = [each.text for each in tab.all("#scale .tick")]
    assert labels == ["0 s", "1 s", "2 s"]


def test_badges_have_the_width_of_their_text(tab: Browser) -> None:
    """In the list, the tree and the heading."""
    for place in ("#list", "#rows", "#head"):
        badge = tab.one(f"{place} .badge")
        assert badge.size["width"] < 12 * len(badge.text)
        assert badge.size["height"] < 28


@pytest.mark.parametrize("path", ["/", "/trace/"])
def test_a_phone_shows_one_thing_at_a_time(tab: Browser, url: str, path: str) -> None:
    """The list, or a trace with a way back; nothing is wider than the screen."""
    trace_id = f"{NUM_TRACES:032x}" if path != "/" else ""
    tab.width(PHONE)
    tab.driver.get(f"{url}{path}{trace_id}")
    until(lambda: tab.all("#rows .row"), "a trace is loaded")
    assert tab.one("nav").is_displayed() == (not trace_id)
    assert tab.one("main").is_displayed() == bool(trace_id)
    assert tab.run("return document.documentElement.scrollWidth") <= PHONE
    if trace_id:
        tab.one("#back").click()
        until(lambda: tab.one("nav").is_displayed(), "the list is shown")
    else:
        tab.one("#list a").click()
        until(lambda: tab.one("main").is_displayed(), "the trace is shown")
    assert tab.errors() == []


def test_dark_colours(tab: Browser, tmp_path: Path) -> None:
    """Text is light on a dark ground if the system prefers it."""
    tab.prefers("dark")
    colours = tab.run(
        "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    )
    tab.prefers("light")
    light, dark = (sum(map(int, each[4:-1].split(","))) for each in colours)
    assert light > 600
    assert dark < 120
