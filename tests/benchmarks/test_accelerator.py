"""The formulas of benchmarks/gpu.py, compared with examples computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import make_model
from benchmarks.accelerator import roofline, summary
from benchmarks.accelerator.probe import Probe
from benchmarks.accelerator.workload import Row, Workload, decode_rate
from inference.model.config import ModelConfig, load_config

RATES = roofline.Rates(bytes_per_second=100.0, flops_per_second=1000.0)

PROBE = Probe(
    name="device",
    driver="1.2",
    torch="2",
    memory_bytes=2**30,
    copy_bytes_per_second=90.0,
    read_bytes_per_second=100.0,
    bfloat16_flops_per_second=1000.0,
    fp8_flops_per_second=None,
)


def config_of(folder: Path, **values: object) -> ModelConfig:
    """A shape small enough to compute by hand; `values` change it."""
    small = {
        **make_model.config_of("tiny"),
        "hidden_size": 4,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 10,
    }
    (folder / "config.json").write_text(json.dumps({**small, **values}))
    return load_config(folder)


def workload(**values: object) -> Workload:
    defaults: dict[str, object] = {
        "folder": "m",
        "device": "cpu",
        "streams": (1, 256),
        "prompt_length": 6,
        "output_length": 8,
        "prefill_length": 5,
        "seed": 0,
    }
    return Workload(**{**defaults, **values})  # type: ignore[arg-type]


def test_the_bytes_of_a_step_are_counted(tmp_path: Path) -> None:
    """Matrices, norms, keys and values, and embedding rows."""
    config = config_of(tmp_path)
    # q 4x4, k and v 2x4, o 4x4, three of 8x4; two layers.
    assert config.num_layer_weights == 2 * (16 + 8 + 8 + 16 + 96) == 288
    assert roofline.head_weights(config) == 40
    # 328 weights, and five norms of 4 in bfloat16.
    assert roofline.weight_bytes(config, "bfloat16") == 656 + 40
    assert roofline.weight_bytes(config, "fp8") == 328 + 40
    assert roofline.weight_bytes(config, "float32") == 1312 + 80
    # Key and value, two layers, one head of 2, two bytes.
    assert roofline.kv_bytes(config, "bfloat16") == roofline.kv_bytes(config, "fp8") == 16
    assert roofline.embedding_bytes(config, "bfloat16") == 8


def test_a_decode_step_is_bound_by_bytes_or_by_products(tmp_path: Path) -> None:
    """696 bytes of weights and 168 a stream against 656 FLOPs a stream."""
    config = config_of(tmp_path)
    bound = roofline.decode_bound(config, "bfloat16", RATES, streams=3, context=10)
    assert bound == pytest.approx((12.0, 1.968))
    assert bound.seconds == pytest.approx(12.0)
    slow = RATES._replace(flops_per_second=100.0)
    bound = roofline.decode_bound(config, "bfloat16", slow, streams=3, context=10)
    assert bound.seconds == pytest.approx(19.68)


def test_prefill_counts_attention_and_one_row_of_logits(tmp_path: Path) -> None:
    """5 tokens: 696 + 5 * 24 bytes; 2 * 288 * 5 + 2 * 40 FLOPs and 15 pairs of 32 in two layers."""
    bound = roofline.prefill_bound(config_of(tmp_path), "bfloat16", RATES, tokens=5)
    assert bound == pytest.approx((8.16, (2880 + 80 + 2 * 4 * 2 * 2 * 15) / 1000))


def test_the_mean_context_is_that_of_the_steps_after_the_first_token() -> None:
    """Prompt 6, output 4: the steps for tokens 2, 3 and 4 attend to 7, 8 and 9 tokens."""
    assert roofline.mean_context(6, 4) == (7 + 8 + 9) / 3


def test_llama_8b_has_the_parameters_that_its_name_promises(tmp_path: Path) -> None:
    """8,030,261,248 with embeddings and norms, as published; its roofline on round numbers."""
    config = config_of(tmp_path, **make_model.config_of("llama-3.1-8b"))
    matrices = config.num_layer_weights + roofline.head_weights(config)
    assert matrices + roofline.head_weights(config) + 65 * 4096 == 8_030_261_248
    assert roofline.kv_bytes(config, "bfloat16") == 131_072
    rates = roofline.Rates(4.8e12, 800e12)
    one = roofline.decode_bound(config, "bfloat16", rates, 1, 192)
    assert 1 / one.seconds == pytest.approx(4.8e12 / (2 * matrices), rel=0.01)
    assert one.seconds == one.bandwidth_seconds


def test_only_the_time_in_which_all_streams_decode_counts() -> None:
    """The second stream starts two seconds later; each has a token a second while both decode."""
    early, late = [0.0, 1, 2, 3, 4], [2.0, 3, 4, 5, 6]
    assert decode_rate([early, late]) == 2.0
    assert decode_rate([early]) == 1.0
    # While only one stream decodes it is faster, which is not counted.
    assert decode_rate([[0.0, 0.1, 0.2, 2, 3, 4], [2.0, 3, 4, 4.1, 4.2]]) == 2.0


def test_the_rate_does_not_depend_on_where_the_window_cuts_a_step() -> None:
    """The times of a step's tokens differ slightly, so that some are outside of the window."""
    times = [[step + stream * 1e-6 for step in range(5)] for stream in range(4)]
    assert decode_rate(times) == pytest.approx(4.0)


def test_streams_that_never_decode_together_are_refused() -> None:
    """There is no figure for a part of the streams."""
    with pytest.raises(ValueError, match="longer output"):
        decode_rate([[0.0, 1, 2], [3.0, 4, 5]])


def test_contenders_have_the_same_prompts_and_no_prompt_repeats() -> None:
    """Rows, rounds and warm-ups have different prompts, because of the prefix cache."""
    first, second = workload(), workload(seed=1)
    assert Workload.from_json(first.to_json()) == first
    seen: set[tuple[int, ...]] = set()
    total = 0
    for work in (first, second):
        for row in work.rows:
            for warm_up in (False, True):
                prompts = work.prompts(row, 100_000, warm_up=warm_up)
                assert prompts == work.prompts(row, 100_000, warm_up=warm_up)
                seen.update(map(tuple, prompts))
                total += len(prompts)
    assert len(seen) == total


def test_lines_have_limits_goals_and_ratios(tmp_path: Path) -> None:
    """Figures are medians over the rounds; a ratio is the median of the rounds' ratios."""
    config = config_of(tmp_path)
    names = [row.name for row in workload().rows]
    rounds = [
        {"weir": dict.fromkeys(names, ours), "transformers": dict.fromkeys(names, theirs)}
        for ours, theirs in ((0.10, 0.05), (0.11, 0.01), (0.12, 0.04))
    ]
    dtypes = {"weir": "bfloat16", "transformers": "bfloat16"}
    found = summary.lines(rounds, dtypes, config, PROBE, workload(), with_goals=True)
    assert [(line.contender, line.row.name) for line in found] == [
        (contender, name) for contender in dtypes for name in names
    ]
    one, many, sampled, prefill = found[:4]
    # A step of one stream at 6 + 8 / 2 tokens moves 696 + 168 bytes at 100 a second.
    assert one.bandwidth_rate == pytest.approx(1 / 8.64)
    assert one.matrix_rate == pytest.approx(1000 / 656)
    assert one.rate == 0.11
    assert one.ratio == pytest.approx(3.0)
    assert one.share_of_bandwidth == one.share_of_roofline == pytest.approx(0.11 * 8.64)
    assert (one.bandwidth_goal, one.ratio_goal) == (0.8, None)
    assert (many.bandwidth_goal, many.ratio_goal) == (0.5, 3.0)
    assert (sampled.bandwidth_goal, prefill.bandwidth_goal) == (None, None)
    assert all(line.ratio is None and line.bandwidth_goal is None for line in found[4:])
    text = summary.table(found)
    assert "95.0% (goal 80%: met)" in text[2]
    assert "(goal 50%: missed)" in text[3]
    assert "3.00x (goal 3x: met)" in text[3]
    elsewhere = summary.lines(rounds, dtypes, config, PROBE, workload(), with_goals=False)
    assert "goal" not in "".join(summary.table(elsewhere))


def test_a_contender_without_figures_keeps_its_rows(tmp_path: Path) -> None:
    """The table says that it failed; it has no ratio."""
    names = [row.name for row in workload().rows]
    rounds = [{"transformers": dict.fromkeys(names, 1.0)}]
    dtypes = {"weir fp8": "fp8", "transformers": "bfloat16"}
    config = config_of(tmp_path)
    found = summary.lines(rounds, dtypes, config, PROBE, workload(), with_goals=True)
    assert [line.rate for line in found] == [None] * 4 + [1.0] * 4
    assert {line.ratio for line in found} == {None}
    text = summary.table(found)
    assert "failed" in text[2]
    assert "(goal 80%: not measured)" in text[2]


def test_the_matrix_rate_of_fp8_is_used_if_it_is_higher() -> None:
    """And the bandwidth is the larger of both measurements."""
    assert PROBE.flops_per_second("fp8") == 1000.0
    faster = PROBE._replace(fp8_flops_per_second=2000.0)
    assert faster.flops_per_second("fp8") == 2000.0
    assert faster.flops_per_second("bfloat16") == 1000.0
    assert PROBE._replace(fp8_flops_per_second=500.0).flops_per_second("fp8") == 1000.0
    assert PROBE.bytes_per_second == 100.0


def test_rows_have_readable_names() -> None:
    """The names in docs/benchmarks.md."""
    assert Row("decode", 1).name == "decode, 1 stream"
    assert Row("decode", 256, sampled=True).name == "decode, 256 streams, temperature 1"
    assert Row("prefill", 2048).name == "prefill, 2,048 tokens"
