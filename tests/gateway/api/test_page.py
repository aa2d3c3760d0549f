"""The search page in a real browser, on a gateway with a fake orchestrator."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys

from mesh.observability import telemetry
from tests.browser import Browser, browser, needs_chromium
from tests.gateway.conftest import StartGateway
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.gateway.pages import WORDS, act, ask, page, until, words
from tests.helpers import eventually

pytestmark = [needs_chromium, pytest.mark.slow, pytest.mark.timeout(180)]

SNIPPET = "A low dam &lt;b> regulates the 🦫 river. It never stops it."
SUMMARY = ["A low dam regulates", " the river.", " [1]", " It is &lt;i>red&lt;/i>.", " [2]"]
TEXT = "".join(SUMMARY)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


OPEN = "document.querySelector('.current details').open = true"
"""Shows the technical figures."""

WATCH = """
window.grown = [];
const length = () => document.getElementById("summary")?.textContent.length ?? 0;
const note = () => length() && grown.push([performance.now(), length()]);
const conversation = document.getElementById("conversation");
new MutationObserver(note).observe(conversation, {childList: true, subtree: true});
"""
"""Records [time in ms, length of the summary] at each change of the summary."""


async def test_results_come_first_and_the_summary_grows(
    start_gateway: StartGateway,
    orchestrator: FakeOrchestrator,
    tab: Browser,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The results appear before any text, the text grows over time, figures follow at the end.

    The link to the trace is shown if the trace is exported.
    """
    monkeypatch.setattr(telemetry, "settle_trace", lambda *_, **__: True)
    orchestrator.script = words(seconds_before_delta=0.02)
    template = "http://localhost:3000/trace/{trace_id}"
    async with page(start_gateway, tab, trace_url_template=template):
        await act(lambda: tab.run(WATCH))
        await ask(tab)
        await until(lambda: len(tab.all("#results .passage")) == 2, "two results are shown")
        await until(lambda: "Done" in tab.text("#status"), "the answer is complete")
        assert (await act(lambda: tab.text("#summary"))).split() == "".join(WORDS).split()
        grown = await act(lambda: tab.run("return grown"))
        await act(lambda: tab.run(OPEN))
        figures = await act(lambda: tab.text("#figures"))
        trace = await act(lambda: tab.one("#figures a").get_attribute("href"))
        assert await act(tab.errors) == []
    assert [length for _, length in grown] == sorted(length for _, length in grown)
    assert len({length for _, length in grown}) > 10
    assert grown[-1][0] - grown[0][0] > 0.5 * len(WORDS) * 20
    assert f"{len(WORDS)}" in figures
    assert "tokens/s" in figures
    assert "First token" in figures
    assert trace == template.format(trace_id=orchestrator.trace_ids[-1])


async def test_stop_cancels_immediately(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tab: Browser
) -> None:
    """The button and Escape cancel upstream without waiting for the grace period."""
    orchestrator.script = words(endless=True, seconds_before_delta=0.03)
    async with page(start_gateway, tab, resume_seconds=120):
        for number, stop in enumerate(
            (
                lambda: tab.one("#stop").click(),
                lambda: tab.one("body").send_keys(Keys.ESCAPE),
            ),
            1,
        ):
            await ask(tab)
            await until(lambda: "word9" in tab.text("#summary"), "text is shown")
            await act(stop)
            await eventually(
                lambda number=number: orchestrator.num_cancelled == number, "it is cancelled", 10
            )
            await until(lambda: "Stopped" in tab.text("#status"), "the page says so")
            assert not await act(lambda: tab.one("#stop").is_enabled())
            await act(lambda: tab.one("#query").clear())
        assert await act(tab.errors) == []


async def test_leaving_the_page_cancels(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tab: Browser
) -> None:
    """Navigating to another page cancels the search upstream."""
    orchestrator.script = words(endless=True, seconds_before_delta=0.03)
    async with page(start_gateway, tab, resume_seconds=120):
        await ask(tab)
        await until(lambda: "word3" in tab.text("#summary"), "text is shown")
        await act(lambda: tab.driver.get("about:blank"))
        await eventually(lambda: orchestrator.num_cancelled == 1, "it is cancelled", 10)


LISTEN = """
window.announced = [];
const status_ = document.getElementById("status");
const note_ = () => announced.push(status_.textContent);
new MutationObserver(note_).observe(status_, {childList: true});
"""
"""Records the status messages, which a screen reader announces."""


async def test_a_lost_connection_is_resumed(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tab: Browser
) -> None:
    """After several lost connections no token is lost or doubled; there is one generation."""
    orchestrator.script = words(seconds_before_delta=0.15)
    async with page(start_gateway, tab, resume_seconds=30) as network:
        await act(lambda: tab.run(LISTEN))
        await ask(tab)
        for number, word in enumerate(("word3", "word9", "word15")):
            await until(lambda word=word: word in tab.text("#summary"), "text is shown")
            network.is_down = number == 1
            assert network.cut() > 0
            if network.is_down:
                await eventually(lambda: network.num_refused > 0, "the page reconnects", 30)
                network.is_down = False
        orchestrator.script.seconds_before_delta = 0.001
        await until(lambda: "Done" in tab.text("#status"), "the answer is complete")
        assert (await act(lambda: tab.text("#summary"))).split() == "".join(WORDS).split()
        assert "Connection lost, trying again…" in await act(lambda: tab.run("return announced"))
    assert len(orchestrator.requests) == 1


async def test_a_stream_that_cannot_be_resumed_is_an_error(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tab: Browser
) -> None:
    """After the grace period the page shows an error and stops reconnecting."""
    orchestrator.script = words(endless=True, seconds_before_delta=0.05)
    async with page(start_gateway, tab, resume_seconds=0.2) as network:
        await ask(tab)
        await until(lambda: "word5" in tab.text("#summary"), "text is shown")
        network.is_down = True
        network.cut()
        await eventually(lambda: orchestrator.num_cancelled == 1, "it is cancelled", 10)
        network.is_down = False
        await until(lambda: "search again" in tab.text("#error"), "the page says so")
    assert len(orchestrator.requests) == 1


EVENT_SOURCE = """
window.seen = []; window.states = [];
const source = new EventSource("/api/v1/search?streaming=true&query=AI");
const note = (event) => window.seen.push([event.type, event.lastEventId, event.data]);
for (const name of ["search_results", "token", "complete"]) source.addEventListener(name, note);
source.onerror = () => window.states.push(source.readyState);
"""


async def test_an_event_source_resumes_and_closes(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tab: Browser
) -> None:
    """A plain EventSource resumes after a lost connection and closes after the last event."""
    orchestrator.script = words(seconds_before_delta=0.05)
    async with page(start_gateway, tab, resume_seconds=30) as network:
        await act(lambda: tab.run(EVENT_SOURCE))
        await until(lambda: tab.run("return seen.length > 5"), "events come")
        network.cut()
        await until(lambda: tab.run("return seen.some(([name]) => name === 'complete')"), "the end")
        await until(lambda: tab.run("return states.at(-1) === 2"), "closed")
        seen = await act(lambda: tab.run("return seen"))
    names = [name for name, _, _ in seen]
    assert names == ["search_results", *["token"] * len(WORDS), "complete"]
    assert [place.rpartition(".")[2] for _, place, _ in seen[1:-1]] == [
        str(number) for number in range(len(WORDS))
    ]
    assert len(orchestrator.requests) == 1


async def test_a_citation_highlights_its_source(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tab: Browser
) -> None:
    """By mouse and keyboard, a citation marks its source text; unsupported ones are flagged."""
    first = TEXT.index(" [1]")
    second = TEXT.index("It is"), TEXT.index(" [2]")
    orchestrator.script = Script(
        deltas=SUMMARY,
        citations=[1, 2],
        citation_details=[
            (1, (0, first), (0, SNIPPET.index(" It never"))),
            (2, second, None),
        ],
        results=[("Weir", "https://example.org/", SNIPPET), ("&lt;b>Dam", "javascript:1", "Dam.")],
    )
    async with page(start_gateway, tab):
        await ask(tab)
        await until(lambda: "Done" in tab.text("#status"), "the answer is complete")
        assert await act(lambda: tab.text("#results li:nth-child(2) .title")) == "<b>Dam"
        assert await act(lambda: tab.all("#results li:nth-child(2) a")) == []
        assert "It is <i>red</i>." in await act(lambda: tab.text(".unsupported"))
        assert "1 sentence is not supported" in await act(lambda: tab.text("#flagged"))
        assert await act(lambda: tab.all("mark.active")) == []
        await act(lambda: tab.one(".citation").click())
        assert await act(lambda: tab.text("mark.active")) == "A low dam <b> regulates the 🦫 river."
        assert await act(lambda: tab.run("return document.activeElement.id")) == "source-1"
        await act(lambda: tab.one("#query").click())
        for _ in range(15):
            await act(lambda: tab.driver.switch_to.active_element.send_keys(Keys.TAB))
            label = await act(
                lambda: tab.driver.switch_to.active_element.get_attribute("aria-label")
            )
            if label == "Source 2: <b>Dam":
                break
        else:
            raise AssertionError("the keyboard focus does not reach the citation")
        assert await act(lambda: "cited" in (tab.one("#source-2").get_attribute("class") or ""))
        assert await act(tab.errors) == []


async def test_the_page_asks_for_an_api_key(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tab: Browser
) -> None:
    """After a 401 the page asks for an API key and keeps it in the tab's session storage."""
    orchestrator.script = Script(citation_details=())
    async with page(start_gateway, tab, api_keys="secret-key"):
        await ask(tab)
        await until(lambda: tab.one("#key").is_displayed(), "the key is asked for")
        assert "API key" in await act(lambda: tab.text("#error"))
        await act(lambda: tab.one("#key").send_keys("secret-key" + Keys.ENTER))
        await until(lambda: "Done" in tab.text("#status"), "the answer is complete")
        assert await act(lambda: tab.text("#summary")) == "Hello world"
        await act(lambda: tab.run("sessionStorage.clear()"))
