"""transformers in bfloat16, in one static batch."""

from __future__ import annotations

import time

import torch
import transformers

from benchmarks.contenders.measure import load_from_arguments, report


@torch.inference_mode()
def main() -> None:
    """Runs a short warm-up, then the measurement."""
    load = load_from_arguments()
    torch.set_num_threads(load.num_threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(load.folder, dtype=torch.bfloat16)
    for length in (4, load.output_length):
        began = time.monotonic()
        output = model(torch.tensor(load.prompts()), use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        prefilled = time.monotonic()
        for _ in range(length - 1):
            output = model(token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1].argmax(-1, keepdim=True)
    report(load, prefilled - began, time.monotonic() - prefilled)


if __name__ == "__main__":
    main()
