"""A response from its request to its last event.

    search, if forced ─▶ generation ─▶ searches that the model calls ─▶ generation ─▶ … ─▶ end

The events of a stream and the response without streaming come from the same steps.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from gateway.observability.request_record import RequestRecord
from gateway.openai.responses import check_not_aborted
from gateway.responses.conversation import Placed, without_oldest
from gateway.responses.frames import Frames
from gateway.responses.generations import Progress, generation
from gateway.responses.items import (
    SEARCH_FIELDS,
    Json,
    SearchCall,
    citations_of,
    closed_item,
    item_id,
    opened_item,
    part_of,
    query_of,
    search_id,
    search_item,
    searchable,
)
from gateway.responses.response import ResponseObject
from gateway.schemas.responses.request import ResponsesRequest
from gateway.schemas.responses.tools import SearchTool
from gateway.streaming.direct_path import DirectPath
from gateway.upstream.blocks import Block, BlockEvent, BlockKind, Blocks, BlockStep
from gateway.upstream.client import Orchestrator, TakeDelta
from gateway.upstream.generation import Event
from mesh.errors import INTERNAL_MESSAGE, ErrorKind, MeshError
from mesh.protocol.api_request import ApiRequest
from mesh.protocol.chat import ChatMessage
from mesh.protocol.deltas import Delta
from mesh.protocol.finish import FinishReason, GenerationFinish, GenerationStarted
from mesh.protocol.search import DEFAULT_RESULTS, MAX_RESULTS, Source
from mesh.protocol.summary import SummaryFinish
from mesh.protocol.usage import Usage

ROUTE = "/v1/responses"

MAX_SEARCHES = 4
"""Most rounds of searches in one response."""

SEARCHED = "The sources are in the last message."


class Run:
    """Generates one response; `response` has its result after `steps`."""

    def __init__(
        self,
        body: ResponsesRequest,
        messages: Sequence[Placed],
        orchestrator: Orchestrator,
        record: RequestRecord,
    ) -> None:
        self.response = ResponseObject(body)
        self._body = body
        self._messages = list(messages)
        self._orchestrator = orchestrator
        self._record = record
        self._frames = Frames() if body.stream else None
        self._blocks = Blocks()
        self._index = self._num_characters = 0
        self._search: SearchCall | None = None
        """The search that the open block calls."""
        self._calls: list[SearchCall] = []
        self._called = False
        """Whether the model has called a function of the client."""
        self._searches: dict[int, Json] = {}
        """The items of searches with all that can be included, by their place in the output."""
        self._sources: list[Source] | None = None
        self._finish = GenerationFinish(FinishReason.STOP, Usage())
        self._num_generations = self._num_searches = 0
        self.on_end: Callable[[str], Awaitable[bool]] | None = None
        """Called with the encoded response when it is complete, before its last event.

        Returns False if it has changed the response.
        """
        self.result = ""
        """The complete response as JSON."""

    @property
    def full_output(self) -> list[Json]:
        """The output with what `include` can ask for later."""
        output = self.response.output
        return [self._searches.get(number, item) for number, item in enumerate(output)]

    @property
    def is_streamed(self) -> bool:
        """Whether `steps` yields events."""
        return self._frames is not None

    def queued(self) -> bytes:
        """The first events of a stream in the background, before the request is accepted."""
        if self._frames is None:
            return b""
        return self._frames.of_response(self.response.encoded(), "created", "queued")

    def failed(self, error: MeshError) -> bytes:
        """The last event of a stream that fails."""
        self.response.fail(error)
        self.result = self.response.encoded()
        return self._last()

    async def steps(self, direct: DirectPath | None = None) -> AsyncGenerator[bytes]:
        """Run to the end; yields the events of a stream, and nothing without streaming.

        The first one is yielded when the orchestrator has accepted the request. Raises MeshError.
        `direct` leads to the client of the stream, past the reader of the steps.
        """
        take, path = None if direct is None else direct.take, direct or DirectPath()
        try:
            forced = await self._forced_search()
            while True:
                events, started = await self._start(take)
                async with aclosing(events):
                    frame = self._accept(started)
                    if forced is not None:
                        frame += self._show(forced, self._add(forced))
                        forced = None
                    if self._frames is not None:
                        yield frame
                    path.encode = self._delta
                    async for event in events:
                        frame = self._delta(event) if isinstance(event, Delta) else self._end(event)
                        if frame:
                            yield frame
                frame = self._apply(self._blocks.finish())
                if frame:
                    yield frame
                calls, self._calls = self._calls, []
                async for frame in self._search_all(calls):
                    yield frame
                if not calls or self._called or self._finish.reason is not FinishReason.STOP:
                    break  # complete, or the client's turn
                self._append(calls)
            await self._complete()
            if self._frames is not None:
                yield self._last()
        finally:
            self.on_end = None  # it refers to this object: kept, it would be a cycle

    async def _complete(self) -> None:
        self.response.finish(self._finish.reason, self._record.usage)
        self.result = self.response.encoded()
        if self.on_end is not None and not await self.on_end(self.result):
            self.result = self.response.encoded()

    def _last(self) -> bytes:
        """The event of the result."""
        if self._frames is None:
            return b""
        return self._frames.of_response(self.result, self.response.status)

    def _accept(self, started: GenerationStarted) -> bytes:
        self._num_generations += 1
        self._blocks = Blocks()
        self._num_characters = 0
        self._finish = GenerationFinish(FinishReason.STOP, Usage())
        self.response.model = started.model
        if self._num_generations > 1:
            self._record.usage.another(started.prompt_tokens)
            return b""
        self._record.accept(ROUTE, (started,))
        self.response.status = "in_progress"
        if self._frames is None:
            return b""
        begun = () if self._body.background else ("created",)  # which `queued` has sent
        return self._frames.of_response(self.response.encoded(), *begun, "in_progress")

    def _delta(self, delta: Delta) -> bytes:
        number = self._num_generations - 1
        if self._frames is None:
            self._record.usage.add(number, delta)
        else:
            self._record.delta(number, delta)
        return self._apply(self._blocks.push(delta))

    def _end(self, event: Event) -> bytes:
        if not isinstance(event, GenerationFinish):
            raise MeshError(ErrorKind.INTERNAL, INTERNAL_MESSAGE)
        self._record.finish(self._num_generations - 1, event)
        check_not_aborted(event)
        self._finish = event
        return b""

    async def _start(
        self, take: TakeDelta | None
    ) -> tuple[AsyncGenerator[Event], GenerationStarted]:
        """Start the next generation, with fewer messages if they may be left out."""
        number = 0
        while True:
            progress = Progress(
                without_oldest(self._messages, number) if number else self._messages,
                self._sources,
                self._may_search,
            )
            request = ApiRequest(self.response.id, self._body.stream)
            events = self._orchestrator.generate(
                generation(self._body, progress)._replace(api_request=request), take
            )
            try:
                started = await anext(events)
            except MeshError as error:
                too_long = error.kind is ErrorKind.CONTEXT_TOO_LONG
                if not too_long or self._body.truncation != "auto" or number >= len(self._messages):
                    raise
                number = max(1, 2 * number)
                continue
            if not isinstance(started, GenerationStarted):
                raise MeshError(ErrorKind.INTERNAL, INTERNAL_MESSAGE)
            return events, started

    @property
    def _may_search(self) -> bool:
        limit = self._body.max_tool_calls
        return self._num_searches < (MAX_SEARCHES if limit is None else min(limit, MAX_SEARCHES))

    def _apply(self, events: Sequence[BlockEvent]) -> bytes:
        """Take events of blocks; returns the frames for them."""
        if len(events) == 1 and events[0].step is BlockStep.PIECE:
            return self._piece(events[0])  # the common case
        return b"".join(map(self._step, events))

    def _piece(self, event: BlockEvent) -> bytes:
        if self._frames is None or self._search is not None:
            return b""
        return self._frames.piece(event)

    def _step(self, event: BlockEvent) -> bytes:
        match event.step:
            case BlockStep.PIECE:
                return self._piece(event)
            case BlockStep.OPEN:
                return self._open(event.block)
            case BlockStep.CLOSE:
                return self._close(event.block)

    def _open(self, block: Block) -> bytes:
        is_call = block.kind is BlockKind.TOOL_CALL
        if is_call and self._may_search and block.name in self._body.searches:
            self._search = SearchCall(block.name, block.id)
            return b""
        self._index = len(self.response.output)
        item = opened_item(block, item_id(block, self.response.id, self._index))
        self.response.output.append(item)
        return b"" if self._frames is None else self._frames.opened(block, item, self._index)

    def _close(self, block: Block) -> bytes:
        if self._search is not None:
            search, self._search = self._search, None
            search.arguments = block.text
            self._calls.append(search)
            return b""
        self._called = self._called or block.kind is BlockKind.TOOL_CALL
        index, annotations = self._index, self._annotations(block)
        part = part_of(block, annotations)
        is_cut = self._finish.reason is FinishReason.LENGTH
        id = item_id(block, self.response.id, index)
        item = closed_item(block, id, "incomplete" if is_cut else "completed", part)
        self.response.output[index] = item
        if self._frames is None:
            return b""
        return self._frames.closed(block, item, index, part, annotations)

    def _annotations(self, block: Block) -> list[Json]:
        if self._sources is None or block.kind is not BlockKind.TEXT:
            return []
        begin = self._num_characters
        self._num_characters += len(block.text)
        if not isinstance(self._finish, SummaryFinish):
            return []
        return citations_of(block.text, begin, self._finish.citation_details, self._sources)

    async def _forced_search(self) -> SearchCall | None:
        """The search that the request itself asks for: its query is the user's last message.

        It is made before the first generation, and shown after its acceptance.
        """
        choice = self._body.tool_choice
        name = choice.search
        if choice.mode == "required" and not (name or choice.name or self._body.functions):
            name = next(iter(self._body.searches))
        query = searchable(self._last_text()) if name else ""
        if not query:
            return None
        call = SearchCall(name, query=query)
        self._num_searches += 1
        await self._retrieve(call)
        return call

    async def _search_all(self, calls: Sequence[SearchCall]) -> AsyncGenerator[bytes]:
        """Search for each call; the results of all become the sources of the next generation."""
        if not calls:
            return
        self._num_searches += 1
        for call in calls:
            call.query = query_of(call.arguments, self._last_text())
            began = self._add(call)
            if self._frames is not None:
                yield began
            await self._retrieve(call)
            ended = self._show(call)
            if self._frames is not None:
                yield ended

    def _add(self, call: SearchCall) -> bytes:
        """Add the item of a search; returns the frames of its begin."""
        index = len(self.response.output)
        begun = replace(call, status="in_progress")
        item = search_item(begun, search_id(call, self.response.id, index), ())
        self.response.output.append(item)
        return b"" if self._frames is None else self._frames.search_began(call, item, index)

    def _show(self, call: SearchCall, began: bytes = b"") -> bytes:
        """Complete the item of a search, which is the last one; returns the frames of its end."""
        index = len(self.response.output) - 1
        id = search_id(call, self.response.id, index)
        item = search_item(call, id, self._body.include)
        self.response.output[index] = item
        self._searches[index] = search_item(call, id, SEARCH_FIELDS)
        return b"" if self._frames is None else began + self._frames.search_ended(call, item, index)

    async def _retrieve(self, call: SearchCall) -> None:
        sources = self._sources = [] if self._sources is None else self._sources
        call.status = "completed"
        if not call.query:
            return
        number = self._num_results(call.name)
        found = await self._orchestrator.retrieve(call.query, number)
        known = {(source.url, source.snippet) for source in sources}
        for result in found.results[: found.num_relevant]:
            if (result.url, result.snippet) not in known:
                sources.append(result._replace(position=len(sources) + 1))
        call.results, call.status = found.results, "failed" if found.failed else "completed"

    def _num_results(self, name: str) -> int:
        given = (
            tool.max_num_results
            for tool in self._body.tools
            if isinstance(tool, SearchTool) and tool.function_name == name
        )
        return min(next(given, None) or DEFAULT_RESULTS, MAX_RESULTS)

    def _last_text(self) -> str:
        said = [each.message.content for each in self._messages if each.message.role == "user"]
        return said[-1] if said else ""

    def _append(self, calls: Sequence[SearchCall]) -> None:
        """Add the calls and their results to the conversation."""
        made = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments or "{}"},
            }
            for call in calls
        ]
        text = "".join(block.text for block in self._blocks.all if block.kind is BlockKind.TEXT)
        turn = ChatMessage(
            role="assistant",
            content=text,
            tool_calls_json=json.dumps(made, ensure_ascii=False),
        )
        self._messages.append(Placed(turn, "input"))
        for call in calls:
            result = ChatMessage(role="tool", content=SEARCHED, tool_call_id=call.call_id)
            self._messages.append(Placed(result, "input"))
