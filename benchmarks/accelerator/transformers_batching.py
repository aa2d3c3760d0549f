"""transformers' continuous batching, in bfloat16."""

from __future__ import annotations

import gc
import json
import math
import statistics
import sys
from contextlib import AbstractContextManager
from typing import Any

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.utils import WorkloadHints

from benchmarks.accelerator.workload import WARM_UP_TOKENS, Row, Workload, decode_rate

AUTO = "auto"
"""transformers chooses: flash attention if it is installed, else torch's."""


def run(manager: Any, prompts: list[list[int]], num_tokens: int) -> list[Any]:
    """Runs all prompts at once; returns the outputs, with the time of each token.

    Raises RuntimeError if a request failed or has too few tokens.
    """
    ids = manager.add_requests(prompts, max_new_tokens=num_tokens, record_timestamps=True)
    outputs: dict[str, Any] = {}
    while len(outputs) < len(ids):
        output = manager.get_result(timeout=1)
        if output is not None and output.is_finished():
            outputs[output.request_id] = output
        elif output is None and not manager.is_running():
            raise RuntimeError("transformers' generation thread has ended; see --verbose")
    for output in outputs.values():
        if output.error is not None or len(output.timestamps) != num_tokens:
            raise RuntimeError(
                f"transformers returned {len(output.timestamps)} of {num_tokens} tokens: "
                f"{output.error}"
            )
    return list(outputs.values())


def batching(
    model: Any, workload: Workload, row: Row, attention: str
) -> AbstractContextManager[Any]:
    """A manager with hints about the workload, as `generate_batch` gives them."""
    prefill = row.kind == "prefill"
    hints = WorkloadHints(
        max_prompt_length=workload.prefill_length if prefill else workload.prompt_length,
        max_generated_length=1 if prefill else workload.output_length,
        num_requests=1 if prefill else row.size,
    )
    config = ContinuousBatchingConfig(auto_switch_to_flash=attention == AUTO)
    if workload.device == "cpu":
        # By default the cache would take most of the machine's memory.
        length = hints.max_prompt_length + hints.max_generated_length
        config.num_blocks = hints.num_requests * (math.ceil(length / config.page_size) + 1)
        config.max_batch_tokens = max(2048, row.size)
    sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if row.sampled else {}
    generation = GenerationConfig(do_sample=row.sampled, eos_token_id=-1, **sampling)
    context: AbstractContextManager[Any] = model.continuous_batching_context_manager(
        generation_config=generation, continuous_batching_config=config, workload_hints=hints
    )
    return context


def figure(model: Any, workload: Workload, row: Row, attention: str) -> tuple[float, str]:
    """Tokens per second of one row after a warm-up, and the attention implementation."""
    vocab_size = model.config.vocab_size
    prompts = workload.prompts(row, vocab_size)
    warm_up = workload.prompts(row, vocab_size, warm_up=True)
    with batching(model, workload, row, attention) as manager:
        about = f"attention {model.config._attn_implementation}"
        if row.kind == "decode":
            run(manager, warm_up, min(WARM_UP_TOKENS, workload.output_length))
            outputs = run(manager, prompts, workload.output_length)
            return decode_rate([output.timestamps for output in outputs]), about
        run(manager, warm_up[:1], 1)
        found = []
        for prompt in prompts:
            [output] = run(manager, [prompt], 1)
            found.append(output.timestamps[0] - output.created_time)
        return workload.prefill_length / statistics.median(found), about


def measure(workload: Workload, attention: str) -> dict[str, object]:
    """Measures all rows of a round, each with a separate manager."""
    chosen = {} if attention == AUTO else {"attn_implementation": attention}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        workload.folder, dtype=torch.bfloat16, **chosen
    ).to(workload.device)
    gc.collect()
    gc.freeze()
    found = {row.name: figure(model, workload, row, attention) for row in workload.rows}
    implementations = sorted({about for _, about in found.values()})
    return {
        "figures": {name: rate for name, (rate, _) in found.items()},
        "about": f"transformers {transformers.__version__}, {', '.join(implementations)}",
    }


def main() -> None:
    """The command line."""
    workload, attention = sys.argv[1:]
    print(json.dumps(measure(Workload.from_json(workload), attention)))


if __name__ == "__main__":
    main()
