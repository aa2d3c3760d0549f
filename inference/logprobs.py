"""Log probabilities of tokens, and of the likeliest ones beside them, out of logits."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from inference.interface import TokenLogprobs
from inference.sequence import Sequence


def token_logprobs(raw: Tensor, token_ids: Rows[int], asked: Rows[int]) -> list[TokenLogprobs]:
    """Of one token a row of `raw` [num_rows, vocab_size], log probabilities.

    `asked` is how many of the likeliest each row wants as well.
    """
    if not token_ids:
        return []
    ids = torch.tensor(token_ids, device=raw.device).clamp(min=0).unsqueeze(1)
    chosen = raw.gather(1, ids).squeeze(1).tolist()
    most = max(asked)
    if not most:
        return [TokenLogprobs(*both, ()) for both in zip(token_ids, chosen, strict=True)]
    values, likeliest = raw.topk(most, dim=-1)
    pairs = zip(likeliest.tolist(), values.tolist(), strict=True)
    tops = [tuple(zip(*pair, strict=True)) for pair in pairs]
    return [
        TokenLogprobs(token_id, logprob, top[:number])
        for token_id, logprob, top, number in zip(token_ids, chosen, tops, asked, strict=True)
    ]


def prompt_logprobs(logits: Tensor, sequence: Sequence) -> list[TokenLogprobs]:
    """Of the prompt's tokens behind the rows of `sequence.prompt_rows`, in order."""
    token_ids = [sequence.token_ids[position + 1] for position in sequence.prompt_rows]
    asked = sequence.params.num_prompt_logprobs
    assert asked is not None, "nobody asked for them"
    raw = torch.log_softmax(logits, dim=-1)
    return token_logprobs(raw, token_ids, [asked] * len(token_ids))
