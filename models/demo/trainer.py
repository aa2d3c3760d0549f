"""Training of the network: readouts on inner layers, losses, optimiser, loss curve."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.demo.examples import EXERCISE_WEIGHT, IGNORED, MAX_SCORE, Row
from models.demo.network import Network, Shape
from models.demo.vocabulary import (
    ASSISTANT,
    END,
    FIRST_HANDLE,
    NONE,
    NUM_HANDLES,
    PAD,
    VOCAB_SIZE,
)

COPY_LAYER, FLAG_LAYER, SCORE_LAYER = 1, 2, 4
COPY_WEIGHT, FLAG_WEIGHT, SCORE_WEIGHT = 0.2, 0.5, 1.0
NUM_PROBED = 512
REPETITION_WEIGHT = 2.0


class Trainer:
    """Owns the network, its readouts and the optimiser; counts steps and tokens."""

    def __init__(self, curve: Path) -> None:
        self.network = Network(Shape(vocab_size=VOCAB_SIZE))
        hidden = self.network.shape.hidden_size
        self._previous = nn.Linear(hidden, hidden)
        self._handle = nn.Linear(hidden, NUM_HANDLES)
        self._flag = nn.Linear(hidden, 2)
        self._score = nn.Linear(hidden, MAX_SCORE + 1)
        readouts = (self._previous, self._handle, self._flag, self._score)
        self._parameters = [
            weight for module in (self.network, *readouts) for weight in module.parameters()
        ]
        matrices = [weight for weight in self._parameters if weight.dim() >= 2]
        vectors = [weight for weight in self._parameters if weight.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": 0.05},
            {"params": vectors, "weight_decay": 0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.97), fused=True)
        self._curve = csv.writer(curve.open("w", buffering=1))
        self._curve.writerow(["step", "phase", "seconds", "tokens", "loss", "choice_accuracy"])
        self._started = time.monotonic()
        self.num_steps = self.num_tokens = 0

    def step(self, phase: str, rows: Sequence[Row], rate: float) -> float:
        """Runs one update; returns the unweighted mean loss of the predicted tokens."""
        ids, weights, flags, scores = collate(rows)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = self.network.hidden(ids[:, :-1])
            target, weight = ids[:, 1:], weights[:, 1:]
            wanted = weight > 0
            logits = self.network.logits(states[-1][wanted]).float()
            losses = F.cross_entropy(logits, target[wanted], reduction="none")
            loss = (losses * weight[wanted]).sum() / weight[wanted].sum()
            total = loss + self._copy_loss(states[COPY_LAYER], ids[:, :-1])
            total = total + self._choice_loss(states, flags[:, :-1], scores[:, :-1])
            total = total + self._exercise_loss(states[-1], target, weight)
            total = total + self._repetition_loss(states[-1], ids)
        total.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.num_steps += 1
        self.num_tokens += ids.numel()
        mean = losses.mean().item()
        self._log(phase, mean, logits, target[wanted])
        return mean

    def _copy_loss(self, state: Tensor, ids: Tensor) -> Tensor:
        """Loss of the readouts of the previous token and of the last handle."""
        real = ids != PAD
        is_handle = (ids >= FIRST_HANDLE) & (ids < FIRST_HANDLE + NUM_HANDLES)
        last = torch.where(is_handle, torch.arange(ids.shape[1]), -1).cummax(1).values
        handles = ids.gather(1, last.clamp(min=0)) - FIRST_HANDLE
        at = _some(real[:, 1:])
        guess = self.network.logits(self._previous(state[:, 1:].flatten(0, 1)[at])).float()
        loss = F.cross_entropy(guess, ids[:, :-1].flatten()[at])
        at = _some(real & (last >= 0))
        if len(at):
            guess = self._handle(state.flatten(0, 1)[at]).float()
            loss = loss + F.cross_entropy(guess, handles.flatten()[at])
        return COPY_WEIGHT * loss

    def _exercise_loss(self, state: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Loss of the copies in the exercise after the answer."""
        copied = weight == EXERCISE_WEIGHT
        if not copied.any():
            return torch.zeros(())
        return F.cross_entropy(self.network.logits(state[copied]).float(), target[copied])

    def _repetition_loss(self, state: Tensor, ids: Tensor) -> Tensor:
        """Unlikelihood loss (arXiv:1908.04319) of a sentence that the answer already contains."""
        losses = []
        for row, sequence in enumerate(ids.tolist()):
            if ASSISTANT not in sequence:
                continue
            begin = sequence.index(ASSISTANT) + 1
            end = sequence.index(END, begin) if END in sequence[begin:] else begin
            used: list[int] = []
            for place in range(begin, end):
                if FIRST_HANDLE <= sequence[place] < FIRST_HANDLE + NUM_HANDLES:
                    if used:
                        chances = self.network.logits(state[row, place - 1]).float().log_softmax(-1)
                        again = chances[used].logsumexp(-1).exp().clamp(max=0.9999)
                        losses.append(-torch.log1p(-again))
                    used.append(sequence[place])
        return REPETITION_WEIGHT * torch.stack(losses).mean() if losses else torch.zeros(())

    def _choice_loss(self, states: Sequence[Tensor], flags: Tensor, scores: Tensor) -> Tensor:
        """Loss of the readouts of key words and of a sentence's number of key words."""
        flagged, scored = flags != IGNORED, scores != IGNORED
        if not flagged.any():
            return torch.zeros(())
        guess = self._flag(states[FLAG_LAYER][flagged]).float()
        loss = F.cross_entropy(guess, flags[flagged], weight=torch.tensor([1.0, 4.0]))
        guess = self._score(states[SCORE_LAYER][scored]).float()
        return FLAG_WEIGHT * loss + SCORE_WEIGHT * F.cross_entropy(guess, scores[scored])

    def _log(self, phase: str, loss: float, logits: Tensor, target: Tensor) -> None:
        chosen = ((target >= FIRST_HANDLE) & (target < FIRST_HANDLE + NUM_HANDLES)) | (
            target == NONE
        )
        right = (logits.argmax(-1) == target)[chosen].float()
        accuracy = f"{right.mean().item():.4f}" if len(right) else ""
        seconds = time.monotonic() - self._started
        row = [self.num_steps, phase, f"{seconds:.0f}", self.num_tokens, f"{loss:.4f}", accuracy]
        self._curve.writerow(row)
        if self.num_steps % 20 == 0:
            print(*row, flush=True)


def collate(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, weights, flags and scores, each [rows, length], padded on the right."""
    length = -(-max(len(row.ids) for row in rows) // 32) * 32
    paddings = (PAD, 0.0, IGNORED, IGNORED)
    columns = [
        torch.tensor([[*each, *[padding] * (length - len(each))] for each in column])
        for column, padding in zip(zip(*rows, strict=True), paddings, strict=True)
    ]
    return columns[0], columns[1].float(), columns[2], columns[3]


def _some(mask: Tensor) -> Tensor:
    at = torch.nonzero(mask.flatten()).flatten()
    return at[torch.randperm(len(at))[:NUM_PROBED]]
