"""CTranslate2 with int8 weights, in one static batch."""

from __future__ import annotations

import time

import ctranslate2

from benchmarks.contenders.measure import load_from_arguments, report


def main() -> None:
    """Converts the model on first use, next to its folder, and measures it."""
    load = load_from_arguments()
    converted = load.folder.with_name(load.folder.name + "-ctranslate2")
    if not converted.is_dir():
        converter = ctranslate2.converters.TransformersConverter(str(load.folder))
        converter.convert(str(converted), quantization="int8")
    generator = ctranslate2.Generator(
        str(converted), device="cpu", compute_type="int8", intra_threads=load.num_threads
    )
    prompts = [[f"w{token_id}" for token_id in prompt] for prompt in load.prompts()]

    def seconds(num_tokens: int) -> float:
        began = time.monotonic()
        generator.generate_batch(
            prompts,
            max_length=num_tokens,
            min_length=num_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
            max_batch_size=0,
        )
        return time.monotonic() - began

    seconds(4)
    prefill = seconds(1)
    report(load, prefill, seconds(load.output_length) - prefill)


if __name__ == "__main__":
    main()
