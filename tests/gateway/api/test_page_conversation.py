"""A conversation on the search page in a real browser, with a fake orchestrator."""

from __future__ import annotations

import pytest

from tests.browser import Browser, browser, needs_chromium
from tests.gateway.conftest import StartGateway
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.gateway.pages import act, ask, page, until
from tests.helpers import eventually

pytestmark = [needs_chromium, pytest.mark.slow, pytest.mark.timeout(180)]

SNIPPET = "A low dam regulates the river. It never stops it."
ANSWER = "A low dam regulates the river. [1]"
SCRIPT = Script(
    deltas=["A low dam ", "regulates the river.", " [1]"],
    citation_details=[(1, (0, 30), (0, 30))],
    results=[
        ("Weir", "https://example.org/weir", SNIPPET),
        ("Weir", "https://example.org/weir", "Another passage."),
        ("Dam", "https://example.org/dam", "It holds a river back."),
    ],
)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


async def done(tab: Browser, number: int) -> None:
    """Wait until the conversation has `number` complete answers."""
    await until(
        lambda: len(tab.all(".actions:not([hidden])")) == number and "Done" in tab.text("#status"),
        f"{number} answers are complete",
    )


async def test_a_conversation_of_three_turns(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tab: Browser
) -> None:
    """An example, a follow-up and a related question; each sends the turns before it."""
    orchestrator.script = SCRIPT
    async with page(start_gateway, tab):
        examples = "#examples .question-link"
        await until(lambda: len(tab.all(examples)) == 2, "examples are shown")
        await act(lambda: tab.one(examples).click())
        await done(tab, 1)
        assert not await act(lambda: tab.one("#examples").is_displayed())
        await ask(tab, "and a dam?")
        await done(tab, 2)
        await until(lambda: tab.all(".current .related li"), "related questions are shown")
        await act(lambda: tab.one(".current .related .question-link").click())
        await done(tab, 3)
        questions = await act(lambda: [each.text for each in tab.all(".question")])
        assert questions == ["What is a weir?", "and a dam?", "What is a dam?"]
        history = [
            [(turn.query, turn.summary) for turn in request.history]  # type: ignore[attr-defined]
            for request in orchestrator.requests
        ]
        assert history == [
            [],
            [("What is a weir?", ANSWER)],
            [("What is a weir?", ANSWER), ("and a dam?", ANSWER)],
        ]
        citation = ".turn:first-child .citation"
        await act(lambda: tab.one(citation).click())
        assert await act(lambda: tab.text(".turn:first-child mark.active")) == SNIPPET[:30]
        assert await act(lambda: tab.all(".current mark.active")) == []
        await act(lambda: tab.one("#new").click())
        await until(lambda: tab.one("#examples").is_displayed(), "the beginning is shown")
        assert await act(lambda: tab.all(".turn")) == []
        assert await act(tab.errors) == []


async def test_sources_are_grouped_by_document(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tab: Browser
) -> None:
    """One card with one link for the passages of a document; the cited span is highlighted."""
    orchestrator.script = SCRIPT
    async with page(start_gateway, tab):
        await ask(tab)
        await done(tab, 1)
        cards = await act(lambda: [len(each) for each in tab.run(CARDS)])
        assert cards == [2, 1]
        assert await act(lambda: tab.text("mark")) == SNIPPET[:30]
        assert not await act(lambda: tab.one(".figures").is_displayed())


CARDS = """
return [...document.querySelectorAll(".document")].map(
  (card) => [...card.querySelectorAll(".passage")].map((each) => each.id));
"""


async def test_an_answer_is_copied_and_shared(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tab: Browser
) -> None:
    """The link asks the question of the turn again."""
    orchestrator.script = SCRIPT
    async with page(start_gateway, tab) as network:
        await act(lambda: tab.run(CLIPBOARD))
        await ask(tab, "a & b?")
        await done(tab, 1)
        await act(lambda: tab.one(".copy").click())
        await until(lambda: tab.text("#status") == "Copied.", "the page says so")
        await act(lambda: tab.one(".share").click())
        await until(lambda: len(tab.run("return copied")) == 2, "both are copied")
        copied = await act(lambda: tab.run("return copied"))
        link = f"http://127.0.0.1:{network.port}/?q=a%20%26%20b%3F"
        assert copied == [ANSWER, link]
        await act(lambda: tab.driver.get(link))
        await done(tab, 1)
        assert await act(lambda: tab.text(".question")) == "a & b?"


CLIPBOARD = """
window.copied = [];
navigator.clipboard.writeText = async (text) => { copied.push(text); };
"""

MARKDOWN = """## Use `a_b_c`

**Bold *and* nested**, a [link](https://example.org/x) and [bad](javascript:alert(1)).
- one [1]
- two &lt;img src=x onerror=alert(1)> snake_case_name

```
x = [1]
```
"""

RENDERED = """
const summary = document.getElementById("summary");
return [...summary.querySelectorAll("*")].filter((each) => !each.className)
  .map((each) => `${each.tagName}:${each.textContent}`);
"""


async def test_markdown_is_rendered_safely(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tab: Browser
) -> None:
    """Only known elements are made, links are HTTP, and sentences keep their support."""
    begin = MARKDOWN.index("one [1]")
    orchestrator.script = Script(
        deltas=[MARKDOWN], citation_details=[(1, (begin, begin + 3), (0, 1)), (0, (3, 6), None)]
    )
    async with page(start_gateway, tab):
        await ask(tab)
        await done(tab, 1)
        made = await act(lambda: tab.run(RENDERED))
        assert {"CODE:a_b_c", "STRONG:Bold ", "EM:and", "A:link"} <= set(made)
        assert not [each for each in made if each.startswith(("IMG", "A:bad", "EM:case"))]
        assert [each for each in made if each.startswith("LI")] == [
            "LI:one 1",
            "LI:two <img src=x onerror=alert(1)> snake_case_name",
        ]
        assert await act(lambda: tab.text(".sentence:not(.unsupported)")) == "one"
        assert "Use" in await act(lambda: tab.text(".unsupported"))
        assert await act(tab.errors) == []


async def test_stages_are_announced_and_a_lost_stream_resumes(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tab: Browser
) -> None:
    """In a follow-up too, no token is lost or doubled, and each question is asked once."""
    orchestrator.script = SCRIPT
    async with page(start_gateway, tab, resume_seconds=30) as network:
        await ask(tab)
        await done(tab, 1)
        orchestrator.script = Script(
            deltas=[f"w{n} " for n in range(20)], citation_details=(), seconds_before_delta=0.1
        )
        await ask(tab, "why?")
        await until(lambda: "w3" in tab.text("#summary"), "text is shown")
        assert network.cut() > 0
        await done(tab, 2)
        text = await act(lambda: tab.text("#summary"))
        assert text.split() == [f"w{n}" for n in range(20)]
    await eventually(lambda: orchestrator.num_running == 0, "all streams have ended")
    assert len(orchestrator.requests) == 2
