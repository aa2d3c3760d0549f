"""Finds the stop strings of a request in its token ids.

The engine knows no text, and routers that find stop strings themselves let the sequence run on. So
the text of these requests is decoded here, one token after another, and of no others.
"""

from __future__ import annotations

from collections.abc import Sequence

from inference.api.vllm_engine.requests import StopRule
from mesh.text.detokenizer import Detokenizer
from mesh.text.stop_strings import StopStrings


class StopFinder:
    """The text of one sequence, until a stop string is complete."""

    def __init__(self, detokenizer: Detokenizer, rule: StopRule) -> None:
        self._detokenizer = detokenizer
        self._strings = StopStrings(rule.strings)
        self._num_exempt = rule.min_tokens

    @property
    def matched(self) -> str:
        """The stop string that is complete; empty if none is."""
        return self._strings.matched

    def push(self, token_ids: Sequence[int]) -> int:
        """Take more ids; returns how many of them belong to the completion.

        That is all of them, or those up to the one that completes a stop string.
        """
        for number, token_id in enumerate(token_ids, 1):
            text = self._detokenizer.push((token_id,))
            self._num_exempt -= 1
            if self._num_exempt >= 0:
                self._strings.skip(text)
            else:
                self._strings.push(text)
            if self._strings.matched:
                return number
        return len(token_ids)
