"""The contents of frames: the start of the supervisor, and a conversation to render."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from typing import NamedTuple

from tokenizer.chat.prompt_format import PromptFormat
from tokenizer.rendering.frames import Frame, Kind

_LENGTH = struct.Struct("!I")


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderLimits:
    """Limits of rendering one conversation."""

    cpu_seconds: float
    memory_bytes: int
    """Memory that a worker may allocate in addition to what it has at its start."""
    max_characters: int
    """Maximum length of the prompt."""


class Start(NamedTuple):
    """The first frame to the supervisor."""

    format: PromptFormat
    limits: RenderLimits

    def frame(self) -> Frame:
        """Serializes it."""
        content = json.dumps([self.format.to_json(), asdict(self.limits)])
        return Frame(Kind.START, content.encode())

    @staticmethod
    def read(frame: Frame) -> Start:
        """Reads the result of `frame`."""
        format, limits = json.loads(frame.content)
        return Start(PromptFormat.from_json(format), RenderLimits(**limits))


class RenderRequest(NamedTuple):
    """A conversation to render."""

    capabilities: bytes
    """A worker's reply to FIND_CAPABILITIES."""
    chat: bytes
    """A serialized ChatPrompt."""

    def frame(self) -> Frame:
        """Serializes it."""
        length = _LENGTH.pack(len(self.capabilities))
        return Frame(Kind.RENDER, length + self.capabilities + self.chat)

    @staticmethod
    def read(frame: Frame) -> RenderRequest:
        """Reads the result of `frame`."""
        (length,) = _LENGTH.unpack_from(frame.content)
        end = _LENGTH.size + length
        return RenderRequest(frame.content[_LENGTH.size : end], frame.content[end:])
