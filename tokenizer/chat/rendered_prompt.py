"""A rendered conversation, and its serialization for another process."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from mesh.protocol.chat import ToolPrompt

_HEAD = struct.Struct("!BI")
_SEGMENT = struct.Struct("!I?")
_TOOL_PROMPTS = tuple(ToolPrompt)


class RenderedSegment(NamedTuple):
    """A part of a rendered conversation; `is_literal` means a control token to encode as text."""

    text: str
    is_literal: bool


class RenderedPrompt(NamedTuple):
    """The parts of a rendered conversation, and how its tools are described."""

    segments: Sequence[RenderedSegment]
    tool_prompt: ToolPrompt

    def to_bytes(self) -> bytes:
        """Serializes it. Raises UnicodeEncodeError for a lone surrogate."""
        texts = [segment.text.encode() for segment in self.segments]
        return b"".join(
            (
                _HEAD.pack(_TOOL_PROMPTS.index(self.tool_prompt), len(texts)),
                *(
                    _SEGMENT.pack(len(text), segment.is_literal)
                    for text, segment in zip(texts, self.segments, strict=True)
                ),
                *texts,
            )
        )

    @staticmethod
    def from_bytes(data: bytes) -> RenderedPrompt:
        """Reads the result of `to_bytes`. Raises ValueError, IndexError or struct.error."""
        tool_prompt, num_segments = _HEAD.unpack_from(data)
        start = _HEAD.size + num_segments * _SEGMENT.size
        segments = []
        for length, is_literal in _SEGMENT.iter_unpack(data[_HEAD.size : start]):
            segments.append(RenderedSegment(data[start : start + length].decode(), is_literal))
            start += length
        return RenderedPrompt(segments, _TOOL_PROMPTS[tool_prompt])
