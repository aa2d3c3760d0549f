"""Permits, and the request table."""

from __future__ import annotations

import pytest

from mesh.errors import ErrorKind, MeshError
from mesh.process.backlog import MAX_RETRY_SECONDS, MIN_RETRY_SECONDS
from orchestrator.admission.admission import Admission
from orchestrator.admission.request_table import ActiveRequest, RequestTable
from orchestrator.observability.request_account import RequestAccount


def test_permits_are_always_released() -> None:
    """Also if the request fails."""
    admission = Admission(1)
    with pytest.raises(ValueError, match="broken"), admission.permit():
        raise ValueError("broken")
    with admission.permit():
        assert admission.num_admitted == 1
    assert admission.num_admitted == 0


def test_requests_over_the_limit_are_refused_with_a_retry_delay() -> None:
    """The message names the limit; the delay is bounded and randomized."""
    admission = Admission(2)
    delays = set()
    with admission.permit(), admission.permit():
        for _ in range(8):
            with pytest.raises(MeshError, match="the limit is 2") as caught, admission.permit():
                pass
            assert caught.value.kind is ErrorKind.OVERLOADED
            delays.add(caught.value.retry_after)
    assert all(MIN_RETRY_SECONDS <= delay <= MAX_RETRY_SECONDS for delay in delays if delay)
    assert len(delays) > 1


def test_the_table_lists_active_requests_oldest_first() -> None:
    """Ids may repeat; cancelling an id ends all requests that have it."""
    table, admission = RequestTable(), Admission(2)
    one, two = (
        ActiveRequest("a", RequestAccount("Generate"), admission.permit()) for _ in range(2)
    )
    cancelled = []
    with table.track(one) as first, table.track(two) as second:
        with first.on_cancel(lambda: cancelled.append("first")):
            assert [request for request in table] == [first, second]
            assert table.cancel("a")
        assert first.cancelled
        assert second.cancelled
    assert cancelled == ["first"]
    assert len(table) == 0
    assert not table.cancel("a")
