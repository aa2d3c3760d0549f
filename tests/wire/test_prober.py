"""How the latencies of `/livez` are judged."""

from __future__ import annotations

from tests.wire.prober import Probe, summary


def test_a_slow_second_of_the_machine_excuses_no_other_one() -> None:
    """Each second is judged alone, and nothing is subtracted from the latencies."""
    gateway = [Probe(0.1, 0.15), Probe(0.5, 0.002), Probe(1.4, 0.4), Probe(1.9, 0.2)]
    idle = [Probe(0.1, 0.02), Probe(1.2, 0.001), Probe(2.3, 0.021)]
    result = summary(gateway, idle)
    assert (result["num_windows"], result["num_busy"]) == (3, 1)
    # The last probe of the gateway ended in the busy second.
    assert (result["max_quiet"], result["max_busy"]) == (0.4, 0.2)
