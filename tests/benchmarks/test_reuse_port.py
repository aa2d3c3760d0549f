"""The spread of connections over listeners of one port."""

from __future__ import annotations

from benchmarks.reuse_port import spread


def test_every_connection_is_counted() -> None:
    """One connection leaves the other listeners idle; many reach all of them."""
    assert spread(4, 1) == (4.0, 0.75)
    busiest, idle = spread(2, 64)
    assert 1.0 <= busiest < 2.0
    assert idle == 0.0
