"""Work on untrusted text takes time in proportion to its length, and leaves the event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping

import pytest

from mesh.protocol.finish import FinishReason, GenerationFinish
from mesh.protocol.sampling_params import MAX_STOP_CHARACTERS
from mesh.protocol.summary import Citation, Grounded
from mesh.protocol.usage import Usage
from mesh.text.detokenizer import Decoder
from mesh.text.stop_strings import StopStrings
from orchestrator.search import summary as summary_module
from orchestrator.search.grounding.citations import CitationFilter, cited_numbers
from orchestrator.search.grounding.grounding import ground
from orchestrator.search.grounding.sentences import (
    MAX_BLOCK_CHARACTERS,
    sentence_spans,
    split_sentences,
)
from orchestrator.text.answer import AnswerParser
from orchestrator.text.harmony import HarmonyParser
from orchestrator.text.reasoning import ReasoningParser
from orchestrator.text.tools.formats import DEEPSEEK_V3, GLM, HERMES, PYTHONIC, QWEN3_CODER
from orchestrator.text.tools.tool_calls import ToolCallParser
from orchestrator.text.tools.tool_format import ToolFormat
from tests.orchestrator.fakes import FakeInference, orchestrator
from tests.orchestrator.tokenizers_made import byte_fallback

MAX_FACTOR = 24
"""Most time for ten times the text; quadratic work takes a hundred times as long."""

PASSAGE = "Caches expire entries after 60 seconds. A cache does not store passwords. " * 10


def filter_citations(text: str) -> None:
    """Filter a text that arrives by character."""
    filter_ = CitationFilter((1,))
    for character in text:
        filter_.push(character)
    filter_.flush()


def ground_text(text: str) -> None:
    """Ground a text whose citations are all of one passage."""
    ground(text, {1: PASSAGE})


def parse_answer(text: str) -> None:
    """Parse reasoning, then tool calls, in an answer that arrives by character."""
    parser = AnswerParser(ReasoningParser(begun=False), ToolCallParser(HERMES, {"x"}))
    for character in text:
        parser.push(character)
    parser.flush()


def parse_call(text: str) -> None:
    """Parse the argument of a tool call."""
    parse_answer('<tool_call>{"name": "x", "arguments": {"a": "' + text)


def parse_with(format: ToolFormat, begin: str) -> Callable[[str], object]:
    """Parses an answer in a format that begins with `begin` and arrives by character."""

    def parse(text: str) -> None:
        parser = AnswerParser(None, ToolCallParser(format, {"x"}))
        for character in begin + text:
            parser.push(character)
        parser.flush()

    return parse


def parse_messages(text: str) -> None:
    """Parse a harmony answer that arrives by character."""
    parser = HarmonyParser({"x"})
    for character in text:
        parser.push(character)
    parser.flush()


TAGS = "<tool_call><function=x><parameter=a>"


def find_stop_string(text: str) -> None:
    """Look for the longest stop strings."""
    stop = StopStrings([letter * (MAX_STOP_CHARACTERS - 1) + "!" for letter in "abcd"])
    for character in text:
        stop.push(character)


def decode_bytes(text: str) -> None:
    """Decode a text of which each byte is a token."""
    stream = Decoder(BYTE_FALLBACK).stream()
    for byte in text.encode():
        stream.push([BYTE_FALLBACK.token_to_id(f"<0x{byte:02X}>")])


BYTE_FALLBACK = byte_fallback()

WORK: list[tuple[str, Callable[[str], object], str]] = [
    ("open brackets", filter_citations, "["),
    ("invalid citations", filter_citations, "[9]"),
    ("nested citations", filter_citations, "[[9]"),
    ("citations cut short", filter_citations, "[1 "),
    ("brackets", cited_numbers, "[1 ["),
    ("sentences", ground_text, "Caches expire many entries after 60 seconds [1]. "),
    ("white space", ground_text, " "),
    ("short sentences", ground_text, "A. [1]"),
    ("Chinese", split_sentences, "汉字。"),
    ("no sentence end", split_sentences, "汉"),
    ("space in an answer", parse_answer, " "),
    ("markers", parse_answer, "<tool_call>"),
    ("braces", parse_answer, "{"),
    ("reasoning", parse_answer, "<think>"),
    ("a call", parse_call, "{"),
    ("a value in tags", parse_with(QWEN3_CODER, TAGS), "</par"),
    ("lines in tags", parse_with(QWEN3_CODER, TAGS), "\n"),
    (
        "tagged parameters",
        parse_with(GLM, "<tool_call>x"),
        "<arg_key>a</arg_key><arg_value>1</arg_value>",
    ),
    ("a value in Python", parse_with(PYTHONIC, "[x(a="), "["),
    ("calls in Python", parse_with(PYTHONIC, "["), "x(a=1), "),
    ("names in Python", parse_with(PYTHONIC, "["), "x"),
    ("DeepSeek's markers", parse_with(DEEPSEEK_V3, DEEPSEEK_V3.start), DEEPSEEK_V3.again),
    ("space between messages", parse_messages, " "),
    ("messages", parse_messages, "<|start|>assistant<|channel|>final<|message|>a<|end|>"),
    ("headers", parse_messages, "<|channel|>"),
    ("stop strings", find_stop_string, "a"),
    ("byte tokens", decode_bytes, "é"),
]


def seconds(work: Callable[[str], object], text: str) -> float:
    """The shortest of three runs, in CPU time of this thread."""
    times = []
    for _ in range(3):
        began = time.thread_time()
        work(text)
        times.append(time.thread_time() - began)
    return min(times)


@pytest.mark.parametrize(("work", "text"), [each[1:] for each in WORK], ids=[w[0] for w in WORK])
def test_ten_times_the_text_takes_about_ten_times_as_long(
    work: Callable[[str], object], text: str
) -> None:
    """The long text has 20,000 characters, as the longest summary."""
    long = text * (20_000 // len(text))
    short = text * (2_000 // len(text))
    taken = seconds(work, long)
    assert taken < 0.5
    assert taken < MAX_FACTOR * seconds(work, short) + 0.005


def test_long_texts_are_cut_at_sentences() -> None:
    """No character is lost, and whole sentences stay whole."""
    sentence = "Caches expire entries, which takes 60 seconds. "
    text = sentence * 200
    assert len(text) > 4 * MAX_BLOCK_CHARACTERS
    assert split_sentences(text) == [sentence.strip()] * 200
    spans = sentence_spans(text)
    assert [text[slice(*span)] for span in spans] == [sentence.strip()] * 200
    assert "".join(split_sentences("汉" * 9000)) == "汉" * 9000


async def test_grounding_leaves_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop serves others while a long summary is grounded."""
    began, proceed = threading.Event(), threading.Event()

    def slow_ground(
        text: str, passages: Mapping[int, str], *, quoted: bool = False
    ) -> list[Citation]:
        began.set()
        assert proceed.wait(10), "the event loop is blocked"
        return []

    monkeypatch.setattr(summary_module, "ground", slow_ground)
    async with orchestrator(FakeInference()) as running:
        pipeline = running.service._pipeline
        finish = GenerationFinish(FinishReason.STOP, Usage())
        grounding = asyncio.create_task(
            pipeline.ground(pipeline.new_summary(Grounded.CITE), finish)
        )
        while not began.is_set():
            await asyncio.sleep(0.001)
        proceed.set()
        [event] = await grounding
        assert isinstance(event, summary_module.SummaryFinish)
