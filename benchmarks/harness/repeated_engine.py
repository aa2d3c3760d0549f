"""Measures the engine of the checkout that PYTHONPATH names, once for each line on standard input.

`benchmarks.engine_before` runs this file for both checkouts; it uses of each checkout only
`benchmarks.contenders.weir`, with the command line of that module.
"""

from __future__ import annotations

import json
import random
import sys

from benchmarks.contenders import weir

measure_once = weir.run


def measure_repeatedly(
    engine: object, name: str, prompts: list[list[int]], num_tokens: int
) -> tuple[float, float, int]:
    """Replaces `weir.run`: measures other prompts of the same length at each line."""
    if name == "warm":
        return measure_once(engine, name, prompts, num_tokens)
    rng = random.Random(0)
    found = (1.0, 1.0, 1)
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin):
        for prompt in prompts:
            rng.shuffle(prompt)  # a repeated prompt would be in the prefix cache
        found = measure_once(engine, f"{name}{number}-", prompts, num_tokens)
        prefill, decode, num_decoded = found
        speeds = (sum(map(len, prompts)) / prefill, num_decoded / decode)
        print(json.dumps(speeds), flush=True)
    return found


if __name__ == "__main__":
    weir.run = measure_repeatedly
    weir.main()
