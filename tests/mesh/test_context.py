"""The request context."""

from __future__ import annotations

import asyncio
import time

import pytest

from mesh.context import (
    RequestContext,
    accept_request_id,
    annotate,
    current_request,
    new_request_id,
    use_request,
)


def test_the_current_request_ends_with_its_block() -> None:
    """Blocks nest; outside of all there is no request."""
    outer, inner = RequestContext(request_id="1"), RequestContext(request_id="2")
    with use_request(outer):
        with use_request(inner):
            assert current_request() is inner
        assert current_request() is outer
    assert current_request() is None


async def test_each_task_has_its_own_request() -> None:
    """Concurrent requests do not see each other."""

    async def work(name: str) -> str:
        with use_request(RequestContext(request_id=name)):
            await asyncio.sleep(0.01)
            request = current_request()
            assert request is not None
            return request.request_id

    assert await asyncio.gather(*map(work, "abc")) == ["a", "b", "c"]


def test_annotations_are_added_to_the_request() -> None:
    """Later values overwrite earlier ones; without a request they are ignored."""
    annotate(lost=1)
    with use_request(RequestContext(request_id="1")) as request:
        annotate(num_tokens=1, model="m")
        annotate(num_tokens=2)
    assert request.fields == {"num_tokens": 2, "model": "m"}


def test_remaining_time_is_never_negative() -> None:
    """0 after a passed deadline, None without one."""
    now = time.monotonic()
    assert RequestContext(request_id="1").remaining() is None
    assert RequestContext(request_id="1", deadline=now - 5).remaining() == 0
    assert RequestContext(request_id="1", deadline=now + 5).remaining() == pytest.approx(5, abs=1)


@pytest.mark.parametrize("given", ["r-1", "a" * 128, "A.b_c:d/e+f=g@h-i"])
def test_a_valid_request_id_is_kept(given: str) -> None:
    """Callers may send their own ids."""
    assert accept_request_id(given) == given


@pytest.mark.parametrize("given", [None, "", "a" * 129, "a b", "a\nb", "é", 'x"y', "r-1\n"])
def test_an_invalid_request_id_is_replaced(given: str | None) -> None:
    """Ids that could break a header or a log line are replaced by a new one."""
    accepted = accept_request_id(given)
    assert accepted != given
    assert len(accepted) == 32


def test_new_ids_differ() -> None:
    """No two requests share one."""
    assert len({new_request_id() for _ in range(100)}) == 100
