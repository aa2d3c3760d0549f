"""A trace as a tree of spans: its shape as text, and checks of its times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.e2e.support.tracing.collector import Span

STAGES = frozenset(
    "admission retrieval encode choose_replica queue prefill decode compute grounding".split()
)
"""Names of the spans that measure work; the others are RPCs and their callers."""


OWN_SECONDS = 0.02
"""Maximum time of the gateway outside of its RPC, on a busy machine."""


class SpanTree:
    """The spans of one trace, by parent."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self.spans = sorted(spans, key=lambda span: (span.start, span.end))
        self._by_id = {span.span_id: span for span in self.spans}

    @property
    def roots(self) -> list[Span]:
        """Spans whose parent is not in this trace."""
        return [span for span in self.spans if span.parent_id not in self._by_id]

    def parent(self, span: Span) -> Span | None:
        return self._by_id.get(span.parent_id)

    def children(self, span: Span) -> list[Span]:
        """Child spans, ordered by start."""
        return [each for each in self.spans if each.parent_id == span.span_id]

    def find(self, name: str, kind: str | None = None) -> Span:
        """The only span of this name; fails if there is not exactly one."""
        found = self.find_all(name, kind)
        assert len(found) == 1, f"{len(found)} spans {name}:\n{self}"
        return found[0]

    def find_all(self, name: str, kind: str | None = None) -> list[Span]:
        return [each for each in self.spans if each.name == name and kind in (None, each.kind)]

    def __str__(self) -> str:
        """One line a span: service, name, outcome, and `!` if its status is an error."""
        return "\n".join(line for root in self.roots for line in self._lines(root, 0))

    def _lines(self, span: Span, depth: int) -> Iterator[str]:
        mark = "!" if span.failed else ""
        yield f"{'  ' * depth}{span.service}: {span.name} {span.outcome}{mark}"
        for child in self.children(span):
            yield from self._lines(child, depth + 1)

    def assert_nested(self, tolerance: float = 0.0) -> None:
        """Checks that each span lies within its parent; it may end `tolerance` seconds later."""
        for span in self.spans:
            parent = self.parent(span)
            if parent is None:
                continue
            early = (parent.start - span.start) / 1e9
            late = (span.end - parent.end) / 1e9
            assert early <= 0, f"{span.name} begins {early} s before its parent\n{self}"
            assert late <= tolerance, f"{span.name} ends {late} s after its parent\n{self}"

    def coverage(self, names: frozenset[str] = STAGES) -> float:
        """Fraction of the root's duration in which at least one span of `names` is open."""
        [root] = self.roots
        covered, reached = 0, root.start
        for span in self.spans:
            if span.name in names:
                start, end = max(span.start, reached), min(span.end, root.end)
                covered += max(0, end - start)
                reached = max(reached, end)
        return covered / (root.end - root.start)

    def is_covered(self, names: frozenset[str]) -> bool:
        """Whether spans of `names` cover 95 % of the root's duration, or all but `OWN_SECONDS`.

        A refused request takes a few milliseconds, and more than 5 % of them are the gateway's
        own parsing and answering.
        """
        [root] = self.roots
        covered = self.coverage(names)
        left = (1 - covered) * (root.end - root.start) / 1e9
        return covered >= 0.95 or left <= OWN_SECONDS
