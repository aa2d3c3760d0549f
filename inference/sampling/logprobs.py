"""Log probabilities of tokens, and of the likeliest ones beside them, out of logits."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor

from inference.runner.staging import to_device
from inference.scheduler.sequence import Sequence
from mesh.protocol.logprobs import TokenLogprob


def token_logprobs(raw: Tensor, token_ids: Rows[int], asked: Rows[int]) -> list[TokenLogprob]:
    """Of one token a row of `raw` [num_rows, vocab_size], log probabilities.

    `asked` is how many of the likeliest each row wants as well.
    """
    if not token_ids:
        return []
    ids = to_device(np.array(token_ids), raw.device).clamp(min=0).unsqueeze(1)
    most = max(asked)
    values, likeliest = raw.topk(most, dim=-1)
    # In one piece, so that the device is waited for once; a double holds ids and floats exactly.
    told = torch.cat([part.double() for part in (raw.gather(1, ids), values, likeliest)], dim=1)
    return [
        TokenLogprob(
            token_id,
            logprob,
            # The likeliest values lie before their ids.
            tuple(zip(map(int, tops[most : most + number]), tops[:number], strict=True)),
        )
        for token_id, number, (logprob, *tops) in zip(token_ids, asked, told.tolist(), strict=True)
    ]


def prompt_logprobs(
    logits: Tensor, sequence: Sequence, positions: Iterable[int]
) -> list[TokenLogprob]:
    """Log probabilities of the prompt tokens that follow `positions`, one row of logits each."""
    token_ids = [sequence.token_ids[position + 1] for position in positions]
    asked = sequence.params.num_prompt_logprobs
    assert asked is not None, "nobody asked for them"
    raw = torch.log_softmax(logits, dim=-1)
    return token_logprobs(raw, token_ids, [asked] * len(token_ids))
