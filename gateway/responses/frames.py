"""The server-sent events of a response, numbered from 0."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.http.json_text import encode_line
from gateway.openai.responses import chat_logprobs
from gateway.responses.items import Json, SearchCall, empty_part, text_logprobs
from gateway.schemas.responses.tools import FILE_SEARCH
from gateway.upstream.blocks import Block, BlockEvent, BlockKind

_DELTA = {
    BlockKind.TEXT: "response.output_text.delta",
    BlockKind.REASONING: "response.reasoning_text.delta",
    BlockKind.TOOL_CALL: "response.function_call_arguments.delta",
}


class Frames:
    """Encodes events. Everything except the text of a delta is encoded once for each block."""

    def __init__(self, number: int = 0) -> None:
        """`number` is that of the first event."""
        self._number = number
        self._before = self._after = ""
        self._place: Json = {}

    def event(self, kind: str, **fields: object) -> bytes:
        """Encode an event."""
        data = encode_line({"type": kind, **fields, "sequence_number": self._number})
        self._number += 1
        return f"event: {kind}\ndata: {data}\n\n".encode()

    def of_response(self, response: str, *statuses: str) -> bytes:
        """Encode an event with the whole response, which is JSON on one line, for each status."""
        frames = []
        for kind in (f"response.{status}" for status in statuses):
            data = f'{{"type":"{kind}","response":{response},"sequence_number":{self._number}}}'
            self._number += 1
            frames.append(f"event: {kind}\ndata: {data}\n\n")
        return "".join(frames).encode()

    def opened(self, block: Block, item: Json, index: int) -> bytes:
        """Encode the events of a block that begins."""
        added = self.event("response.output_item.added", output_index=index, item=item)
        self._place = {"item_id": item["id"], "output_index": index}
        if block.kind is not BlockKind.TOOL_CALL:
            self._place["content_index"] = 0
            part = empty_part(block)
            added += self.event("response.content_part.added", **self._place, part=part)
        kind = _DELTA[block.kind]
        place = encode_line({"type": kind, **self._place})
        self._before = f'event: {kind}\ndata: {place[:-1]},"delta":'
        self._after = ',"logprobs":[]' if block.kind is BlockKind.TEXT else ""
        return added

    def piece(self, event: BlockEvent) -> bytes:
        """Encode a delta of the block that was opened last."""
        if event.logprobs:
            return self._piece_with_logprobs(event)
        number = self._number
        self._number += 1
        text = encode_line(event.text)
        return f'{self._before}{text}{self._after},"sequence_number":{number}}}\n\n'.encode()

    def _piece_with_logprobs(self, event: BlockEvent) -> bytes:
        logprobs = chat_logprobs(event.logprobs)
        return self.event(
            "response.output_text.delta",
            **self._place,
            delta=event.text,
            logprobs=logprobs["content"] if logprobs else [],
        )

    def closed(
        self, block: Block, item: Json, index: int, part: Json, annotations: Sequence[Json]
    ) -> bytes:
        """Encode the events of the block that was opened last, and ends."""
        frames = [
            self.event(
                "response.output_text.annotation.added",
                **self._place,
                annotation_index=number,
                annotation=annotation,
            )
            for number, annotation in enumerate(annotations)
        ]
        match block.kind:
            case BlockKind.TEXT:
                frames.append(
                    self.event(
                        "response.output_text.done",
                        **self._place,
                        text=block.text,
                        logprobs=text_logprobs(block),
                    )
                )
            case BlockKind.REASONING:
                frames.append(
                    self.event("response.reasoning_text.done", **self._place, text=block.text)
                )
            case BlockKind.TOOL_CALL:
                frames.append(
                    self.event(
                        "response.function_call_arguments.done",
                        **self._place,
                        name=block.name,
                        arguments=block.text,
                    )
                )
        if block.kind is not BlockKind.TOOL_CALL:
            frames.append(self.event("response.content_part.done", **self._place, part=part))
        frames.append(self.event("response.output_item.done", output_index=index, item=item))
        return b"".join(frames)

    def search_began(self, call: SearchCall, item: Json, index: int) -> bytes:
        """Encode the events of a search that begins."""
        kind = _search_kind(call)
        place = {"item_id": item["id"], "output_index": index}
        return (
            self.event("response.output_item.added", output_index=index, item=item)
            + self.event(f"response.{kind}.in_progress", **place)
            + self.event(f"response.{kind}.searching", **place)
        )

    def search_ended(self, call: SearchCall, item: Json, index: int) -> bytes:
        """Encode the events of a search that has ended."""
        kind = _search_kind(call)
        place = {"item_id": item["id"], "output_index": index}
        return self.event(f"response.{kind}.completed", **place) + self.event(
            "response.output_item.done", output_index=index, item=item
        )


def _search_kind(call: SearchCall) -> str:
    return "file_search_call" if call.name == FILE_SEARCH else "web_search_call"
