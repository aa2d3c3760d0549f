"""Log probabilities of tokens, and of the likeliest ones beside them, out of logits."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from inference.interface import TokenLogprobs
from inference.sequence import Sequence


def token_logprobs(
    raw: Tensor, token_ids: Rows[int], asked: Rows[int | None]
) -> list[TokenLogprobs | None]:
    """Of one token a row of `raw` [num_rows, vocab_size], log probabilities.

    `asked` is how many of the likeliest each row wants as well; None gives None.
    """
    most = max((number for number in asked if number is not None), default=0)
    index = torch.arange(len(token_ids), device=raw.device)
    chosen = raw[index, torch.tensor(token_ids, device=raw.device).clamp(min=0)].tolist()
    values, ids = raw.topk(max(most, 1), dim=-1)
    tops = [
        list(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)
    ]
    return [
        None if number is None else TokenLogprobs(token_id, logprob, tuple(top[:number]))
        for token_id, logprob, top, number in zip(token_ids, chosen, tops, asked, strict=True)
    ]


def prompt_logprobs(logits: Tensor, sequence: Sequence) -> list[TokenLogprobs]:
    """Of the prompt's tokens behind the rows of `sequence.prompt_rows`, in order."""
    token_ids = [sequence.token_ids[position + 1] for position in sequence.prompt_rows]
    asked = [sequence.params.num_prompt_logprobs] * len(token_ids)
    raw = torch.log_softmax(logits, dim=-1)
    return [each for each in token_logprobs(raw, token_ids, asked) if each is not None]
