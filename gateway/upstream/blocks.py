"""The deltas of an answer as consecutive blocks: reasoning, text, and one block for each tool call.

For APIs whose answer is a list of items or content blocks. The answer without streaming is made
of the same blocks, so that both forms have the same content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import NamedTuple

from mesh.protocol.deltas import Delta, DeltaLogprob


class BlockKind(StrEnum):
    """What a block contains."""

    REASONING = "reasoning"
    TEXT = "text"
    TOOL_CALL = "tool_call"


@dataclass(slots=True, eq=False)
class Block:
    """A block, complete or still growing."""

    index: int
    """Its number in the answer, from 0."""
    kind: BlockKind
    id: str = ""
    """Id of a tool call."""
    name: str = ""
    """Name of the called tool."""
    pieces: list[str] = field(default_factory=list)
    """Its text so far; of a tool call its arguments as JSON."""
    logprobs: list[DeltaLogprob] = field(default_factory=list)
    """Of the tokens of a text, if requested."""

    @property
    def text(self) -> str:
        """The whole text so far."""
        return "".join(self.pieces)


class BlockStep(Enum):
    """What happens to a block."""

    OPEN = auto()
    PIECE = auto()
    CLOSE = auto()


class BlockEvent(NamedTuple):
    """A step of one block; each block has OPEN, then pieces, then CLOSE."""

    step: BlockStep
    block: Block
    text: str = ""
    """The new text of a PIECE."""
    logprobs: Sequence[DeltaLogprob] = ()
    """Of the tokens of a PIECE."""


class Blocks:
    """Divides one answer into blocks; at most one is open."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        """The blocks so far, in their order."""
        self._open: Block | None = None

    def push(self, delta: Delta) -> list[BlockEvent]:
        """Take the next delta. Its order is reasoning, text, tool calls."""
        block = self._open
        if block is not None and not delta.tool_calls:
            # The common cases, once for each token: more of the open block.
            if block.kind is BlockKind.TEXT and not delta.reasoning:
                return [_piece(block, delta.text, delta.logprobs)]
            if block.kind is BlockKind.REASONING and not delta.text and not delta.logprobs:
                return [_piece(block, delta.reasoning)] if delta.reasoning else []
        events: list[BlockEvent] = []
        if delta.reasoning:
            events.append(_piece(self._of_kind(BlockKind.REASONING, events), delta.reasoning))
        if delta.text or delta.logprobs:
            text = self._of_kind(BlockKind.TEXT, events)
            events.append(_piece(text, delta.text, delta.logprobs))
        for call in delta.tool_calls:
            if call.name:
                self._begin(events, BlockKind.TOOL_CALL, call.id, call.name)
            block = self._of_kind(BlockKind.TOOL_CALL, events)
            if call.arguments:
                events.append(_piece(block, call.arguments))
        return events

    def finish(self) -> list[BlockEvent]:
        """Close the open block, at the end of the answer."""
        block, self._open = self._open, None
        return [] if block is None else [BlockEvent(BlockStep.CLOSE, block)]

    def _of_kind(self, kind: BlockKind, events: list[BlockEvent]) -> Block:
        """The open block if it is of this kind, else a new one."""
        if self._open is not None and self._open.kind is kind:
            return self._open
        return self._begin(events, kind)

    def _begin(
        self, events: list[BlockEvent], kind: BlockKind, id: str = "", name: str = ""
    ) -> Block:
        events += self.finish()
        block = self._open = Block(len(self.all), kind, id, name)
        self.all.append(block)
        events.append(BlockEvent(BlockStep.OPEN, block))
        return block


def _piece(block: Block, text: str, logprobs: Sequence[DeltaLogprob] = ()) -> BlockEvent:
    block.pieces.append(text)
    if logprobs:
        block.logprobs.extend(logprobs)
    return BlockEvent(BlockStep.PIECE, block, text, logprobs)
