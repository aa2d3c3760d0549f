"""The head of a response and the first part of its body are one write."""

from __future__ import annotations

import asyncio

import pytest

from gateway.connection.response_transport import ResponseTransport


class Written(asyncio.Transport):
    """Records the writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.writes.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


@pytest.fixture
async def response(written: Written) -> ResponseTransport:
    made = ResponseTransport(written, asyncio.get_running_loop(), written.close)
    made.expect_head()
    return made


@pytest.fixture
def written() -> Written:
    return Written()


async def test_head_and_body_are_one_write(response: ResponseTransport, written: Written) -> None:
    """Later parts are written at once; the next response begins with its head."""
    for part in (b"head ", b"body", b"more"):
        response.write(part)
    assert written.writes == [b"head body", b"more"]
    response.expect_head()
    response.write(b"second head ")
    response.write(b"second body")
    assert written.writes[2:] == [b"second head second body"]
    await asyncio.sleep(0)
    assert len(written.writes) == 3


async def test_a_head_without_a_body_is_not_held(
    response: ResponseTransport, written: Written
) -> None:
    """Such as that of a stream whose first event takes a minute."""
    response.write(b"head")
    await asyncio.sleep(0)
    assert written.writes == [b"head"]
    response.write(b"body")
    assert written.writes == [b"head", b"body"]


async def test_a_head_is_written_before_the_next_response(
    response: ResponseTransport, written: Written
) -> None:
    """A response to HEAD has no body, and the next request may be in the pipeline."""
    response.write(b"head")
    response.expect_head()
    assert written.writes == [b"head"]


async def test_closing_writes_the_head(response: ResponseTransport, written: Written) -> None:
    """Before the end of the connection, and never after it."""
    response.write(b"head")
    response.close()
    assert written.writes == [b"head"]
    assert response.is_closing()
    response.expect_head()
    response.write(b"late")
    await asyncio.sleep(0)
    assert written.writes == [b"head"]
