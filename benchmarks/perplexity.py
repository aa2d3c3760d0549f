"""Measures what a weight type costs in quality: perplexity, and agreement with float32.

    python -m benchmarks.perplexity MODEL --text examples/corpus/*.md

The text is cut into windows. The agreement is the share of positions at which the most likely token
is that of the first type.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from inference.kv_cache.kv_cache import KVCache
from inference.model.config import load_config
from inference.model.factory import ModelOptions, activation_type, make_model
from inference.model.weights.weights import open_weights
from inference.runner.step import Step
from mesh.hub.model_folder import model_folder

BLOCK_SIZE = 16
FIRST = 1
"""The first token of a window has nothing before it to be predicted from."""


def windows(folder: Path, texts: list[Path], num_tokens: int, size: int) -> list[list[int]]:
    """The first `num_tokens` of the texts, in windows of `size`."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in texts)
    ids = tokenizer.encode(text, add_special_tokens=False).ids[:num_tokens]
    return [ids[begin : begin + size] for begin in range(0, len(ids), size)]


def evaluate(
    folder: Path, dtype: str, kernels: str, cut: list[list[int]], threads: int
) -> tuple[float, torch.Tensor]:
    """The perplexity, and the most likely token [num_tokens] after each token."""
    config, device = load_config(folder), torch.device("cpu")
    longest = max(map(len, cut))
    options = ModelOptions(
        dtype=dtype, kernels=kernels, max_context=longest, block_size=BLOCK_SIZE, threads=threads
    )
    model = make_model(config, open_weights(folder), device, options)
    num_blocks = -(-longest // BLOCK_SIZE)
    cache = KVCache(config, num_blocks, BLOCK_SIZE, activation_type(dtype), device)
    total, best = 0.0, []
    for ids in cut:
        step = Step(
            token_ids=ids,
            positions=list(range(len(ids))),
            begins=[0, len(ids)],
            block_tables=[list(range(num_blocks))],
            outputs=list(range(len(ids))),
        )
        logits = model.compute(step, cache)
        assert logits is not None
        wanted = torch.tensor(ids[FIRST:])
        total += float(F.cross_entropy(logits[:-FIRST], wanted, reduction="sum"))
        best.append(logits.argmax(dim=-1))
    return math.exp(total / sum(len(ids) - FIRST for ids in cut)), torch.cat(best)


def main() -> None:
    """Print a line for each weight type."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.perplexity", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("model", help="model folder or GGUF file")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "int8", "int4"])
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--tokens", type=int, default=6_144)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = model_folder(arguments.model, ())
    cut = windows(folder, arguments.text, arguments.tokens, arguments.window)
    reference: tuple[float, torch.Tensor] | None = None
    for dtype in arguments.dtypes:
        found = evaluate(folder, dtype, arguments.kernels, cut, arguments.threads)
        reference = reference or found
        agreement = float((found[1] == reference[1]).float().mean())
        print(
            f"{dtype:<10} perplexity {found[0]:8.3f} ({found[0] / reference[0] - 1:+.2%})   "
            f"agreement {agreement:.1%}   {sum(map(len, cut))} tokens",
            flush=True,
        )


if __name__ == "__main__":
    main()
