"""The blocks of an answer."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.blocks import BlockEvent, BlockKind, Blocks, BlockStep
from mesh.protocol.deltas import Delta, DeltaLogprob, ToolCallDelta

OPEN, PIECE, CLOSE = BlockStep.OPEN, BlockStep.PIECE, BlockStep.CLOSE


def pushed(*deltas: Delta) -> tuple[Blocks, list[BlockEvent]]:
    """The blocks of the deltas, and the events."""
    blocks = Blocks()
    events = [event for delta in deltas for event in blocks.push(delta)]
    return blocks, [*events, *blocks.finish()]


def test_reasoning_text_and_calls_are_separate_blocks() -> None:
    """A change of kind, or a new call, closes the open block."""
    blocks, events = pushed(
        Delta("", 1, reasoning="Hm"),
        Delta("", 1, reasoning="m."),
        Delta("Let", 1, reasoning=" So:"),
        Delta(" me see", 1),
        Delta("", 1, tool_calls=(ToolCallDelta(0, "a", "find"), ToolCallDelta(0, arguments="{"))),
        Delta("", 1, tool_calls=(ToolCallDelta(0, arguments="}"), ToolCallDelta(1, "b", "add"))),
        Delta("", 1, tool_calls=(ToolCallDelta(1, arguments="{}"),)),
    )
    assert [(block.kind, block.id, block.name, block.text) for block in blocks.all] == [
        (BlockKind.REASONING, "", "", "Hmm. So:"),
        (BlockKind.TEXT, "", "", "Let me see"),
        (BlockKind.TOOL_CALL, "a", "find", "{}"),
        (BlockKind.TOOL_CALL, "b", "add", "{}"),
    ]
    assert [(event.step, event.block.index) for event in events] == [
        *[(OPEN, 0), (PIECE, 0), (PIECE, 0), (PIECE, 0), (CLOSE, 0)],
        *[(OPEN, 1), (PIECE, 1), (PIECE, 1), (CLOSE, 1)],
        *[(OPEN, 2), (PIECE, 2), (PIECE, 2), (CLOSE, 2)],
        *[(OPEN, 3), (PIECE, 3), (CLOSE, 3)],
    ]


def test_log_probabilities_stay_with_their_text() -> None:
    """Also of a token that adds no text because it ends within a character."""
    first, second = DeltaLogprob("", b"\xc3", -1.0), DeltaLogprob("é", b"\xa9", -2.0)
    blocks, events = pushed(Delta("", 1, (first,)), Delta("é", 1, (second,)))
    [block] = blocks.all
    assert (block.text, block.logprobs) == ("é", [first, second])
    assert [event.logprobs for event in events if event.step is PIECE] == [(first,), (second,)]


def test_an_answer_without_deltas_has_no_blocks() -> None:
    """Nothing is opened or closed."""
    blocks, events = pushed(Delta("", 2))
    assert (blocks.all, events) == ([], [])


TEXTS = st.builds(lambda text: Delta(text, 1), st.text(max_size=3))
REASONING = st.builds(lambda text: Delta("", 1, reasoning=text), st.text(max_size=3))
CALLS = st.just(Delta("", 1, tool_calls=(ToolCallDelta(0, "id", "name", "{}"),)))


@given(st.lists(TEXTS | REASONING | CALLS, max_size=12))
def test_every_block_opens_and_closes_once_in_order(deltas: list[Delta]) -> None:
    """Blocks do not overlap, nothing is lost, and neighbours of one kind are one block."""
    blocks, events = pushed(*deltas)
    for block in blocks.all:
        steps = [event.step for event in events if event.block is block]
        assert (steps[0], steps[-1]) == (OPEN, CLOSE)
        assert set(steps[1:-1]) <= {PIECE}
    assert [event.block.index for event in events] == sorted(e.block.index for e in events)
    for kind in (BlockKind.TEXT, BlockKind.REASONING):
        texts = "".join(block.text for block in blocks.all if block.kind is kind)
        given = "".join(d.text if kind is BlockKind.TEXT else d.reasoning for d in deltas)
        assert texts == given
    for before, after in pairwise(blocks.all):
        assert before.kind is not after.kind or before.kind is BlockKind.TOOL_CALL
