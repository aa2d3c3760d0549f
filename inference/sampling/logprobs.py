"""Log probabilities of sampled and prompt tokens, with the top alternatives at each position."""

from __future__ import annotations

from collections import abc

import numpy as np
import torch
from torch import Tensor

from inference.runner.staging import to_device
from inference.scheduler.sequence import Sequence
from mesh.protocol.logprobs import TokenLogprob


def token_logprobs(
    raw: Tensor, token_ids: abc.Sequence[int], num_top: abc.Sequence[int]
) -> list[TokenLogprob]:
    """The log probability of one token per row of `raw` [num_rows, vocab_size].

    `raw` holds log probabilities; `num_top` is the number of top tokens to return for each row.
    """
    if not token_ids:
        return []
    ids = to_device(np.array(token_ids), raw.device).clamp(min=0).unsqueeze(1)
    most = max(num_top)
    values, top_ids = raw.topk(most, dim=-1)
    # One tensor, so that the host waits for the device once; a double holds ids and floats exactly.
    parts = [part.double() for part in (raw.gather(1, ids), values, top_ids)]
    rows = torch.cat(parts, dim=1).tolist()
    return [
        TokenLogprob(
            token_id,
            logprob,
            # A row holds its top values first, then their ids.
            tuple(zip(map(int, tops[most : most + number]), tops[:number], strict=True)),
        )
        for token_id, number, (logprob, *tops) in zip(token_ids, num_top, rows, strict=True)
    ]


def prompt_logprobs(
    logits: Tensor, sequence: Sequence, positions: abc.Iterable[int]
) -> list[TokenLogprob]:
    """Log probabilities of the prompt tokens that follow `positions`, one row of logits each."""
    token_ids = [sequence.token_ids[position + 1] for position in positions]
    num_top = sequence.params.num_prompt_logprobs
    assert num_top is not None, "the request does not ask for prompt logprobs"
    raw = torch.log_softmax(logits, dim=-1)
    return token_logprobs(raw, token_ids, [num_top] * len(token_ids))
