"""Permits and the table of requests."""

from __future__ import annotations

import pytest

from mesh.errors import ErrorKind, MeshError
from mesh.process.backlog import MAX_RETRY_SECONDS, MIN_RETRY_SECONDS
from orchestrator.admission.admission import Admission
from orchestrator.admission.request_table import RequestTable


def test_permits_are_given_back_whatever_happens() -> None:
    """Also when the request fails."""
    admission = Admission(1)
    with pytest.raises(ValueError, match="broken"), admission.permit():
        raise ValueError("broken")
    with admission.permit():
        assert admission.num_admitted == 1
    assert admission.num_admitted == 0


def test_beyond_the_limit_is_refused_with_a_delay() -> None:
    """The message names the limit; the delay is bounded and not always the same."""
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


def test_the_table_lists_the_oldest_first_and_forgets() -> None:
    """Ids may repeat; cancelling ends all that have the id."""
    table = RequestTable()
    called_off = []
    with table.track("a", "Generate") as first, table.track("a", "Generate") as second:
        with first.cancels(lambda: called_off.append("first")):
            assert [request for request in table] == [first, second]
            assert table.cancel("a")
        assert first.cancelled
        assert second.cancelled
    assert called_off == ["first"]
    assert len(table) == 0
    assert not table.cancel("a")
