"""Speculative decoding by prompt lookup (n-gram matching), because text often repeats itself.

If a sequence's last tokens occurred earlier, the tokens that followed them there are proposed as
draft tokens. One forward pass computes all drafts; each position is sampled as it would be without
them; drafts are accepted up to the first one that differs from the sampled token. So speculation
changes how many tokens a step yields, and never which.
"""

from __future__ import annotations

from collections import abc

import numpy as np

from inference.scheduler.scheduler_output import ScheduledSequence
from inference.scheduler.sequence import Sequence
from inference.scheduler.step_result import SampledToken

LONGEST_MATCH = 4
"""Longest suffix that is searched for; longer matches do not predict better."""

MAX_PAUSE = 64
"""Most steps without drafts after drafts were rejected several times in a row."""


class Drafter:
    """Proposes draft tokens, fewer where few were accepted. Keeps its state in the sequence."""

    def __init__(self, num_tokens: int) -> None:
        """`num_tokens` is the most drafts per sequence and step; 0 disables speculation."""
        self.num_tokens = num_tokens

    def draft(self, sequence: Sequence, most: int) -> list[int]:
        """Propose up to `most` next tokens; empty if the last tokens did not occur before."""
        speculation = sequence.speculation
        if speculation.pause:
            speculation.pause -= 1
            return []
        length = speculation.length or self.num_tokens
        # The last token ends the sequence and is sampled, not drafted.
        room = sequence.max_tokens - sequence.num_completion_tokens - 1
        num_tokens = min(length, self.num_tokens, room, most)
        return lookup(sequence.token_ids, num_tokens) if num_tokens > 0 else []

    def will_search(self, sequence: Sequence) -> bool:
        """Whether `draft` would search in the sequence's next step."""
        return self.num_tokens > 0 and not sequence.speculation.pause

    def skip(self, sequence: Sequence) -> None:
        """Record a step without drafts."""
        sequence.speculation.pause = max(sequence.speculation.pause - 1, 0)

    def learn(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Adapt the number of drafts to how many of the last ones were accepted."""
        speculation = sequence.speculation
        speculation.num_drafted += num_drafted
        speculation.num_accepted += num_accepted
        if num_accepted == num_drafted:
            speculation.length = min(2 * num_drafted, self.num_tokens)
        else:
            speculation.length = num_accepted + 1
        if num_accepted:
            speculation.num_misses = 0
        else:
            speculation.pause = min(2**speculation.num_misses - 1, MAX_PAUSE)
            speculation.num_misses += 1


def lookup(token_ids: abc.Sequence[int], num_tokens: int) -> list[int]:
    """Find the latest earlier occurrence of the longest suffix; return the tokens after it.

    If fewer than `num_tokens` follow, the sequence repeats itself, and the repetition is continued.
    """
    ids = np.array(token_ids)  # a copy: a view would keep the array from growing
    ends = np.flatnonzero(ids[:-1] == ids[-1])  # last indices of the matches
    length = min(len(ends), 1)
    while 0 < length < LONGEST_MATCH:
        longer = ends[ends >= length]
        if not len(longer):
            break
        longer = longer[ids[longer - length] == ids[-1 - length]]
        if not len(longer):
            break
        ends, length = longer, length + 1
    if not length:
        return []
    begin = int(ends[-1]) + 1
    drafts: list[int] = np.resize(ids[begin : begin + num_tokens], num_tokens).tolist()
    return drafts


def accept(
    sampling: abc.Sequence[ScheduledSequence], sampled: list[SampledToken]
) -> list[list[SampledToken]]:
    """For each sequence, the sampled tokens up to the first that differs from its draft.

    `sampled` holds one token per sequence and one more per draft. The result for a sequence is
    empty if no token could be sampled.
    """
    tokens = iter(sampled)
    accepted: list[list[SampledToken]] = []
    for scheduled in sampling:
        drafts = scheduled.draft_token_ids
        if not drafts:  # the usual case, once per token
            token = next(tokens)
            accepted.append([token] if token.token_id >= 0 else [])
            continue
        kept: list[SampledToken] = []
        candidates = [next(tokens) for _ in range(1 + len(drafts))]
        for token, draft in zip(candidates, [*drafts, None], strict=True):
            if token.token_id < 0:
                break
            kept.append(token)
            if token.token_id != draft:
                break
        accepted.append(kept)
    assert next(tokens, None) is None, "more tokens were sampled than the plan has rows"
    return accepted
