"""The baseline of the benchmarks of tracing."""

from __future__ import annotations

from benchmarks.harness.untraced import NoClientSpan
from mesh.observability.tracing import ClientSpan


def test_the_replacement_has_what_callers_use() -> None:
    """Without it each request of the baseline fails."""
    wanted = {name for name in vars(ClientSpan("s.S/M", [])) if not name.startswith("_")}
    wanted |= {name for name in vars(ClientSpan) if not name.startswith("_")}
    assert wanted >= {"complete", "end", "error", "span"}
    assert wanted <= set(dir(NoClientSpan()))
