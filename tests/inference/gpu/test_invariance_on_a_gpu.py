"""Batch invariance on a GPU: a token's results are equal bit for bit in any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="NO KERNELS ARE TESTED: triton is not installed")

from inference.engine.engine import Engine
from inference.model.kernels.attention.attention import Launch, attend
from inference.model.kernels.attention.launches import LARGEST_TILE
from inference.model.kernels.product import MAX_PART, Products
from inference.model.layers.quantise import quantise_rows
from inference.runner.invariance import Invariance
from inference.runner.step_inputs import make_inputs
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence
from tests.inference.model.kernel_checks import needs_fp8
from tests.inference.model.test_parity import prompts
from tests.inference.steps import make_step

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

BLOCK_SIZE = 16
PART = 256


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(
    ("num_inputs", "num_outputs"), [(1024, 200), (2048, 20_000), (MAX_PART + 640, 512)]
)
def test_products_are_batch_invariant(
    num_inputs: int, num_outputs: int, fp8: bool, device: torch.device
) -> None:
    """For each tile; the results are in float32, so that rounding hides no difference."""
    if fp8:
        needs_fp8(device)
    products = Products(device)
    rows = torch.randn(700, num_inputs, device=device).bfloat16()
    weight = torch.randn(num_outputs, num_inputs, device=device).bfloat16()
    scales = None
    if fp8:
        rows, row_scales = quantise_rows(rows)
        weight, output_scales = quantise_rows(weight)
        scales = (row_scales, output_scales.view(1, -1))

    def multiply(begin: int, end: int) -> torch.Tensor:
        given = None if scales is None else (scales[0][begin:end].clone(), scales[1])
        x = rows[begin:end].clone()
        return products(x, weight, scales=given, dtype=torch.float32)

    everything = multiply(0, 700)
    wide = rows.float() if not fp8 else rows.float() * scales[0]  # type: ignore[index]
    exact = wide.double() @ (weight.double() * (scales[1].T if scales else 1)).T
    assert (everything - exact).abs().max() < 0.05 * exact.abs().max()
    for size in (1, 2, 16, 17, 64, 65, 128, 200, 256, 257):
        assert torch.equal(multiply(300, 300 + size), everything[300 : 300 + size]), size


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("window", [None, 300])
def test_attention_is_batch_invariant(
    head_dim: int, window: int | None, device: torch.device
) -> None:
    """A query alone or in a prompt, with split keys or not; in float32, as above."""
    num_blocks, num_heads, num_kv_heads, context = 100, 8, 2, 1100
    shape = (num_blocks * BLOCK_SIZE, num_kv_heads, head_dim)
    cache = torch.randn(2, *shape, device=device).bfloat16().unbind()
    every = torch.randn(40, num_heads, head_dim, device=device).bfloat16()

    def see(num_rows: int, *, splits: bool) -> torch.Tensor:
        step = make_step([(context - num_rows, num_rows)], BLOCK_SIZE, num_blocks)
        queries = every[-num_rows:].clone()
        seen = torch.zeros_like(queries, dtype=torch.float32)
        launch = Launch(
            first_sequence=0,
            num_sequences=1,
            first_row=0,
            num_rows=num_rows,
            num_tiles=-(-num_rows // (LARGEST_TILE // (num_heads // num_kv_heads))),
            tile_rows=LARGEST_TILE,
            num_splits=-(-context // PART) if splits else 1,
            part=PART,
        )
        inputs = make_inputs(step, BLOCK_SIZE, device)
        attend(
            queries, (cache[0], cache[1]), seen, inputs, launch,
            block_size=BLOCK_SIZE, window=window,
        )  # fmt: skip
        return seen

    last = see(1, splits=False)[-1]
    assert last.abs().max() > 0
    for num_rows in (1, 7, 40):
        for splits in (False, True):
            assert torch.equal(see(num_rows, splits=splits)[-1], last), (num_rows, splits)


def tokens_and_logprobs(
    engine: Engine, mine: list[int], others: Iterable[list[int]] = (), **params: Any
) -> list[tuple[int, float]]:
    """A prompt's tokens and logprobs, while the engine runs other prompts without a seed."""
    first = Sequence("mine", mine, SamplingParams(max_tokens=70, num_logprobs=0, **params))
    unseeded = SamplingParams(max_tokens=60, temperature=1.0, ignore_eos=True)
    for number, prompt in enumerate(others):
        engine.add(Sequence(str(number), prompt, unseeded))
        engine.step()
    engine.add(first)
    found: list[tuple[int, float]] = []
    while engine.has_work:
        for output in engine.step():
            if output.request_id == "mine":
                logprobs = [each.logprob for each in output.logprobs]
                found += zip(output.token_ids, logprobs, strict=True)
    engine.check_when_idle()
    assert len(found) == 70
    return found


MINE = prompts(45)[0]
OTHERS = prompts(*range(3, 90, 3), seed=1)
SEEDED: dict[str, Any] = {"temperature": 1.0, "seed": 7, "ignore_eos": True}
COPIES = [1, 2, 3, 4] * 11
"""A prompt for which prompt lookup proposes draft tokens."""


@pytest.mark.parametrize(
    ("family", "dtype", "graphs"),
    [
        ("llama-tied-gqa", "bfloat16", True),
        ("llama-tied-gqa", "bfloat16", False),
        ("llama-tied-gqa", "fp8", True),
        ("mistral-window", "bfloat16", True),
        ("qwen3", "bfloat16", True),
    ],
)
def test_a_seeded_request_gets_the_same_tokens(
    make_gpu_engine: Callable[..., Engine], family: str, dtype: str, graphs: bool
) -> None:
    """Tokens and logprobs are equal bit for bit.

    Alone, in a batch, with chunked prefill, preemption, a cached prefix and draft tokens.
    """
    if dtype == "fp8":
        needs_fp8(torch.device("cuda"))

    def make(**options: Any) -> Engine:
        return make_gpu_engine(family, dtype=dtype, cuda_graphs=graphs, **options)

    engine = make(max_num_seqs=40)
    expected = tokens_and_logprobs(engine, MINE, **SEEDED)
    assert tokens_and_logprobs(engine, MINE, OTHERS, **SEEDED) == expected  # cached by now
    small = make(max_num_seqs=40, max_num_batched_tokens=16)
    assert tokens_and_logprobs(small, MINE, OTHERS, **SEEDED) == expected
    tight = make(kv_cache_tokens=320)
    assert tokens_and_logprobs(tight, MINE, OTHERS[:8], **SEEDED) == expected
    assert tight.load().num_preemptions > 0
    speculative = make(num_speculative_tokens=4)
    assert tokens_and_logprobs(speculative, MINE, OTHERS[:3], **SEEDED) == expected


def test_draft_tokens_change_nothing(make_gpu_engine: Callable[..., Engine]) -> None:
    """Also if the drafts are accepted, as for a prompt that repeats itself."""
    params = {**SEEDED, "temperature": 0.0}
    expected = tokens_and_logprobs(make_gpu_engine(), COPIES, **params)
    speculative = make_gpu_engine(num_speculative_tokens=4)
    assert tokens_and_logprobs(speculative, COPIES, OTHERS[:5], **params) == expected


def test_all_requests_can_be_batch_invariant(make_gpu_engine: Callable[..., Engine]) -> None:
    """INFERENCE_BATCH_INVARIANCE=all, with a greedy request without a seed."""
    greedy: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
    engine = make_gpu_engine(batch_invariance=Invariance.ALL, max_num_seqs=40)
    expected = tokens_and_logprobs(engine, MINE, **greedy)
    assert tokens_and_logprobs(engine, MINE, OTHERS, **greedy) == expected
