"""This engine, including its scheduler, KV cache, prefix cache and sampler."""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.accelerator.workload import WARM_UP_TOKENS, Row, Workload, decode_rate
from inference.engine.engine import Engine
from inference.model.loading import EngineOptions, load_engine
from inference.runner.invariance import Invariance
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence
from mesh.process.garbage_collection import freeze_startup_objects
from mesh.protocol.finish import FinishReason


def token_times(
    engine: Engine, name: str, prompts: list[list[int]], params: SamplingParams
) -> tuple[float, list[list[float]]]:
    """Runs all prompts at once; returns the start time, and the times of each stream's tokens.

    Raises RuntimeError if a sequence ended early or was preempted, because the load would differ.
    """
    sequences = [Sequence(f"{name} {n}", prompt, params) for n, prompt in enumerate(prompts)]
    times: dict[str, list[float]] = {sequence.request_id: [] for sequence in sequences}
    began = time.perf_counter()
    for sequence in sequences:
        engine.add(sequence)
    while engine.has_work:
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            times[output.request_id] += [now] * len(output.token_ids)
    for sequence in sequences:
        finish = sequence.finish
        if finish is None or finish.reason is not FinishReason.LENGTH or finish.num_preemptions:
            raise RuntimeError(f"a sequence of {name!r} was not completed: {finish}")
    return began, list(times.values())


def figure(engine: Engine, workload: Workload, row: Row) -> float:
    """Tokens per second of one row, after a warm-up with other prompts."""
    temperature = 1.0 if row.sampled else 0.0
    vocab_size = engine.model_info.vocab_size
    num_tokens = 1 if row.kind == "prefill" else workload.output_length

    def params(most: int) -> SamplingParams:
        return SamplingParams(max_tokens=most, temperature=temperature, ignore_eos=True)

    warm_up = workload.prompts(row, vocab_size, warm_up=True)
    token_times(engine, "warm-up", warm_up, params(min(num_tokens, WARM_UP_TOKENS)))
    prompts = workload.prompts(row, vocab_size)
    if row.kind == "decode":
        _, times = token_times(engine, row.name, prompts, params(num_tokens))
        return decode_rate(times)
    found = []
    for number, prompt in enumerate(prompts):
        began, [[first]] = token_times(engine, f"{row.name} {number}", [prompt], params(1))
        found.append(first - began)
    return workload.prefill_length / statistics.median(found)


def measure(workload: Workload, dtype: str, invariance: Invariance) -> dict[str, object]:
    """Measures all rows of a round with one engine, sized for the largest row."""
    engine = load_engine(
        replace(
            EngineOptions.defaults(Path(workload.folder), "m"),
            num_speculative_tokens=0,
            device=workload.device,
            dtype=dtype,
            batch_invariance=invariance,
            max_num_seqs=max(workload.streams),
            max_context=workload.max_context,
        )
    )
    freeze_startup_objects()
    figures = {row.name: figure(engine, workload, row) for row in workload.rows}
    info = engine.model_info
    about = f"{info.dtype} on {info.device}, batch invariance for {invariance.value}"
    return {"figures": figures, "about": about}


def main() -> None:
    """The command line: the workload, and the weights' dtype with the batch invariance."""
    workload, argument = sys.argv[1:]
    dtype, invariance = argument.split()
    print(json.dumps(measure(Workload.from_json(workload), dtype, Invariance(invariance))))


if __name__ == "__main__":
    main()
