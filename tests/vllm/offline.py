"""Generates with vLLM's own offline API: run with the Python of vLLM's environment.

offline.py MODEL_FOLDER OUT.json < {"prompts": [[id, …], …], "max_tokens": 32}
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Writes the greedy tokens of each prompt as JSON."""
    request = json.load(sys.stdin)
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    engine: Any = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=2048)
    params = SamplingParams(temperature=0, max_tokens=request["max_tokens"], ignore_eos=True)
    prompts = [{"prompt_token_ids": prompt} for prompt in request["prompts"]]
    outputs = engine.generate(prompts, params, use_tqdm=False)
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    Path(sys.argv[2]).write_text(json.dumps(tokens))
    os._exit(0)  # the engine's own process may take long to end; the caller kills it


if __name__ == "__main__":
    main()
