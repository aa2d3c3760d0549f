"""The table of benchmarks/gpu.py: figures, rooflines, ratios and goals."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from benchmarks.accelerator.probe import Probe
from benchmarks.accelerator.roofline import (
    Bound,
    Rates,
    decode_bound,
    mean_context,
    prefill_bound,
)
from benchmarks.accelerator.workload import Row, Workload
from inference.model.config import ModelConfig

BASELINE = "transformers"
BASELINE_DTYPE = "bfloat16"

BANDWIDTH_GOALS = {Row("decode", 1): 0.8, Row("decode", 256): 0.5}
"""Goals as shares of the bandwidth roofline, on an H200 with Llama-3.1-8B's shape."""

RATIO_GOALS = {Row("decode", 256): 3.0}
"""Goals as ratios to transformers' tokens per second, on the same device and shape."""

Rounds = Sequence[Mapping[str, Mapping[str, float]]]
"""Tokens per second of each round, by contender and row name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of one contender. Rates are tokens per second; None: not measured."""

    contender: str
    row: Row
    rate: float | None
    """The median over the rounds."""
    bandwidth_rate: float
    """The limit of the bandwidth."""
    matrix_rate: float
    """The limit of the matrix rate."""
    bandwidth_goal: float | None
    """A share of `bandwidth_rate`."""
    ratio: float | None
    """To transformers: the median of each round's ratio."""
    ratio_goal: float | None

    @property
    def roofline(self) -> float:
        """The lower of both limits."""
        return min(self.bandwidth_rate, self.matrix_rate)

    @property
    def share_of_roofline(self) -> float | None:
        return None if self.rate is None else self.rate / self.roofline

    @property
    def share_of_bandwidth(self) -> float | None:
        return None if self.rate is None else self.rate / self.bandwidth_rate

    def to_dict(self) -> dict[str, object]:
        """All values, for the JSON file."""
        return {
            **asdict(self),
            **self.row._asdict(),
            "row": self.row.name,
            "roofline": self.roofline,
            "share_of_roofline": self.share_of_roofline,
            "share_of_bandwidth": self.share_of_bandwidth,
        }


def bound_of(
    row: Row, config: ModelConfig, dtype: str, probe: Probe, workload: Workload
) -> tuple[float, Bound]:
    """The tokens of a step, and the lower bounds of its duration."""
    rates = Rates(probe.bytes_per_second, probe.flops_per_second(dtype))
    if row.kind == "prefill":
        return row.size, prefill_bound(config, dtype, rates, row.size)
    context = mean_context(workload.prompt_length, workload.output_length)
    return row.size, decode_bound(config, dtype, rates, row.size, context)


def lines(
    rounds: Rounds,
    dtypes: Mapping[str, str],
    config: ModelConfig,
    probe: Probe,
    workload: Workload,
    *,
    with_goals: bool,
) -> list[Line]:
    """A line for each contender and row. `dtypes` are the contenders' weight types.

    The goals apply only to a GPU and Llama-3.1-8B's shape.
    """
    found = []
    for contender, dtype in dtypes.items():
        for row in workload.rows:
            rates = [each[contender][row.name] for each in rounds if contender in each]
            ratios = [
                each[contender][row.name] / each[BASELINE][row.name]
                for each in rounds
                if contender in each and BASELINE in each
            ]
            tokens, bound = bound_of(row, config, dtype, probe, workload)
            is_baseline = contender == BASELINE
            has_goals = with_goals and not is_baseline
            found.append(
                Line(
                    contender=contender,
                    row=row,
                    rate=statistics.median(rates) if rates else None,
                    bandwidth_rate=tokens / bound.bandwidth_seconds,
                    matrix_rate=tokens / bound.matrix_seconds,
                    bandwidth_goal=BANDWIDTH_GOALS.get(row) if has_goals else None,
                    ratio=statistics.median(ratios) if ratios and not is_baseline else None,
                    ratio_goal=RATIO_GOALS.get(row) if has_goals else None,
                )
            )
    return found


def describe(probe: Probe) -> list[str]:
    """The device and its measured limits, as text."""
    memory = f", {probe.memory_bytes / 2**30:.0f} GiB" if probe.memory_bytes else ""
    fp8 = probe.fp8_flops_per_second
    return [
        f"{probe.name}{memory}; driver {probe.driver}; torch {probe.torch}",
        f"bandwidth {_tera(probe.bytes_per_second)}B/s (copy {_tera(probe.copy_bytes_per_second)}, "
        f"read {_tera(probe.read_bytes_per_second)}); "
        f"matrices {_tera(probe.bfloat16_flops_per_second)}FLOP/s in bfloat16, "
        + ("none in fp8" if fp8 is None else f"{_tera(fp8)}FLOP/s in fp8"),
    ]


def table(found: Sequence[Line]) -> list[str]:
    """The lines as a text table, which marks each goal as met or missed."""
    head = f"{'tokens/s':>10}{'bandwidth':>11}{'matrices':>11}{'roofline':>10}"
    head += f"{'of bandwidth':>27}{'to transformers':>26}"
    texts: list[str] = []
    for number, line in enumerate(found):
        if number == 0 or found[number - 1].contender != line.contender:
            texts += ["", f"{line.contender:<36}{head}"]
        rate = "failed" if line.rate is None else f"{line.rate:,.0f}"
        share = _percent(line.share_of_bandwidth)
        ratio = "" if line.ratio is None else f"{line.ratio:.2f}x"
        if line.bandwidth_goal is not None:
            share += _goal(
                line.share_of_bandwidth, line.bandwidth_goal, f"{line.bandwidth_goal:.0%}"
            )
        if line.ratio_goal is not None:
            ratio += _goal(line.ratio, line.ratio_goal, f"{line.ratio_goal:g}x")
        texts.append(
            f"  {line.row.name:<34}{rate:>10}"
            f"{line.bandwidth_rate:>11,.0f}{line.matrix_rate:>11,.0f}"
            f"{_percent(line.share_of_roofline):>10}{share:>27}{ratio:>26}".rstrip()
        )
    return texts


def _goal(reached: float | None, goal: float, text: str) -> str:
    if reached is None:
        return f" (goal {text}: not measured)"
    return f" (goal {text}: {'met' if reached >= goal else 'missed'})"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _tera(value: float) -> str:
    """Three significant digits and a unit prefix, such as 4.80 T or 42.0 G."""
    for prefix, size in (("T", 1e12), ("G", 1e9)):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value / 1e6:.3g} M"
