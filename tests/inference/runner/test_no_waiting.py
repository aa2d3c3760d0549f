"""In a step the host waits for the device once: to fetch the tokens.

Tested without a GPU: torch's meta device, which has shapes and no values, takes its place, and a
dispatch mode records every operation that would synchronise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from inference.kv_cache.kv_cache import KVCache
from inference.model.llama import Llama
from inference.runner.cuda_graphs.graphed_model import GraphedModel
from inference.runner.model_runner import ModelRunner
from inference.runner.staging import to_device
from inference.sampling.torch_sampler import TorchSampler
from inference.scheduler.block_manager import BlockManager
from inference.scheduler.scheduler_output import ScheduledSequence, SchedulerOutput
from inference.scheduler.sequence import Sequence
from inference.structured_output.masks import Masks, MaskWorker
from tests.inference.sampled import make_sequence, plan_of, rows_of
from tests.inference.steps import CPU, load_llama

DEVICE = torch.device("meta")
aten = torch.ops.aten


class Watch(TorchDispatchMode):
    """Records each operation that would make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.num_fetches = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        options = options or {}
        with self:  # inference mode does not decompose operations
            result = function.decompose(*arguments, **options)
        if result is not NotImplemented:
            return result
        if function is aten._to_copy.default:
            source, target = arguments[0].device, options.get("device", arguments[0].device)
            if source == DEVICE and target == CPU:
                self.num_fetches += 1
                return torch.zeros(arguments[0].shape, dtype=options["dtype"])
            self._copies(source, target, bool(options.get("non_blocking")))
        elif function is aten.copy_.default:
            target, source = arguments[0].device, arguments[1].device
            self._copies(source, target, len(arguments) > 2 and bool(arguments[2]))
        elif function is aten._local_scalar_dense.default and arguments[0].device == DEVICE:
            self.waits.append("a single value is fetched")
            return 0
        elif function in (aten.index.Tensor, aten.index_put_.default):
            indices = [index for index in arguments[1] if index is not None]
            if any(index.dtype == torch.bool for index in indices):
                self.waits.append("the number of rows of a mask is fetched")
            if any(index.device != arguments[0].device for index in indices):
                self.waits.append("an index is copied")
        return function(*arguments, **options)

    def _copies(self, source: torch.device, target: torch.device, non_blocking: bool) -> None:
        if source != target and not non_blocking:
            self.waits.append(f"a copy from {source} to {target}")


@contextmanager
def watching(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Record the operations in the block."""
    watch, make = Watch(), torch.tensor

    def tensor(*arguments: Any, device: Any = None, **options: Any) -> Tensor:
        if device is not None and torch.device(device) == DEVICE:
            watch.waits.append("a tensor is made of values on the host")
        return make(*arguments, device=device, **options)

    with monkeypatch.context() as patch, watch:
        patch.setattr(torch, "tensor", tensor)
        # Without a GPU, memory cannot be pinned.
        patch.setattr(Tensor, "pin_memory", lambda self: self)
        yield watch


@pytest.fixture
def model(model_folder: Callable[[str], Path], family: str) -> Llama:
    """A family's model on the meta device."""
    return load_llama(model_folder(family), device=DEVICE)


def make_cache(model: Llama) -> KVCache:
    """A KV cache on the meta device."""
    return KVCache(model.config, 64, 16, torch.float32, DEVICE)


def schedule(sequences: list[Sequence]) -> SchedulerOutput:
    """A plan that decodes all of them."""
    blocks = BlockManager(64, 16)
    for sequence in sequences:
        assert blocks.allocate(sequence)
        sequence.num_computed_tokens = sequence.num_tokens - 1
    return plan_of(sequences)


SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"seed": 1},
    {"seed": 1, "top_k": 5, "top_p": 0.9, "min_p": 0.1},
    {"temperature": 0.0, "frequency_penalty": 1.0, "presence_penalty": 1.0},
    {"seed": 3, "repetition_penalty": 1.2, "logit_bias": {3: 4.0}},
]


@pytest.mark.parametrize("captured", [False, True])
def test_a_step_waits_once(model: Llama, captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With each combination of sampling parameters except logprobs, alone and mixed."""
    cache = make_cache(model)
    runs: Any = model
    if captured:
        runs = GraphedModel(
            model, cache, max_num_rows=8, max_context=512, capture=lambda compute: compute
        )
    runner = ModelRunner(runs, cache, MaskWorker(199), TorchSampler())
    for mixture in (*([each] for each in SAMPLINGS), SAMPLINGS):
        batch = schedule([make_sequence([1, 2, 3], [4, 5], **each) for each in mixture])
        with watching(monkeypatch) as watch:
            assert len(runner.launch(batch).result().tokens) == len(mixture)
        assert watch.waits == []
        assert watch.num_fetches == 1
    if captured:
        assert runs.num_replayed_steps == len(SAMPLINGS) + 1


@pytest.mark.parametrize("family", ["llama-tied-gqa"])
def test_log_probabilities_cost_one_more(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more fetch for all rows together."""
    runner = ModelRunner(model, make_cache(model), MaskWorker(199), TorchSampler())
    params = ({"num_logprobs": 3}, {"num_logprobs": 0}, {"temperature": 0.0})
    batch = schedule([make_sequence([1, 2, 3], [4, 5], **each) for each in params])
    with watching(monkeypatch) as watch:
        runner.launch(batch).result()
    assert watch.waits == []
    assert watch.num_fetches == 2


@pytest.mark.parametrize("family", ["mistral-window"])
def test_chunks_of_prompts_do_not_wait(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step with a decode and with a chunk that needs no logits."""
    runner = ModelRunner(model, make_cache(model), MaskWorker(199), TorchSampler())
    decode, prefill = schedule(
        [make_sequence([1] * 40, [2]), make_sequence([3] * 60, [])]
    ).scheduled
    prefill.sequence.num_computed_tokens = 20
    chunk = ScheduledSequence(prefill.sequence, 30, False)
    plan = SchedulerOutput([decode, chunk])
    with watching(monkeypatch) as watch:
        assert len(runner.launch(plan).result().tokens) == 1
    assert watch.waits == []
    assert watch.num_fetches == 1


def test_masks_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token masks are copied to the device without a wait."""
    bitmasks = np.full((1, 7), -1, dtype=np.int32)
    rows = rows_of([make_sequence(temperature=0.0), make_sequence(seed=1)])
    with watching(monkeypatch) as watch:
        TorchSampler().sample(torch.empty((2, 199), device=DEVICE), rows, Masks([1], bitmasks))
    assert watch.waits == []
    assert watch.num_fetches == 1


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        (lambda x: torch.from_numpy(np.zeros(2)).to(DEVICE), "a copy from cpu to meta"),
        (lambda x: x.copy_(torch.zeros(4)), "a copy from cpu to meta"),
        (lambda x: torch.tensor([1, 2], device=DEVICE), "a tensor is made of values"),
        (lambda x: x[torch.zeros(2, dtype=torch.int64)], "an index is copied"),
        (lambda x: x.sum().item(), "a single value is fetched"),
        (lambda x: bool(x.any()), "a single value is fetched"),
    ],
)
def test_the_watch_notices_each_wait(
    do: Callable[[Tensor], object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each synchronising operation is recorded, and an asynchronous copy is not."""
    with watching(monkeypatch) as watch:
        do(torch.empty(4, device=DEVICE))
    assert len(watch.waits) == 1
    assert watch.waits[0].startswith(reason)
    with watching(monkeypatch) as watch:
        torch.empty(4, device=DEVICE)[to_device(np.array([1, 2]), DEVICE)].tolist()
    assert (watch.waits, watch.num_fetches) == ([], 1)
