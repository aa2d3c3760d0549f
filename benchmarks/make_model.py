"""Writes a model with random weights, in the shape of a known model, as a Hugging Face folder.

python -m benchmarks.make_model --out FOLDER [--device cuda]

Speed does not depend on the values of the weights, so that measuring it needs no download.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

SHAPES: dict[str, dict[str, object]] = {
    # For tests of the benchmarks.
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 4096,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
    },
}

SHARD_BYTES = 4 * 2**30
"""Maximum size of a weights file, unless a single tensor is larger."""

Shape = tuple[int, ...]


def config_of(shape: str) -> dict[str, object]:
    """config.json of a shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        **SHAPES[shape],
    }


def tensor_shapes(config: dict[str, object]) -> dict[str, Shape]:
    """Names and shapes of all weights, in the order of their generation."""
    hidden, inner, vocab = (
        int(str(config[name])) for name in ("hidden_size", "intermediate_size", "vocab_size")
    )
    heads = int(str(config["num_attention_heads"]))
    kv_size = hidden // heads * int(str(config["num_key_value_heads"]))
    found: dict[str, Shape] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (vocab, hidden)
    for number in range(int(str(config["num_hidden_layers"]))):
        prefix = f"model.layers.{number}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{prefix}.{norm}.weight"] = (hidden,)
        for name, rows, columns in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", kv_size, hidden),
            ("self_attn.v_proj", kv_size, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            found[f"{prefix}.{name}.weight"] = (rows, columns)
    return found


def random_weight(shape: Shape, device: str) -> torch.Tensor:
    """A bfloat16 tensor: ones for a norm, else small random values."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    values: torch.Tensor = torch.randn(shape, device=device) * shape[1] ** -0.5
    return values.bfloat16().cpu()


def shards(shapes: dict[str, Shape], most_bytes: int) -> list[list[str]]:
    """The names in order, in groups of at most `most_bytes` each."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        num_bytes = math.prod(shape) * torch.bfloat16.itemsize
        if groups[-1] and size + num_bytes > most_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += num_bytes
    return groups


def write_weights(
    folder: Path, config: dict[str, object], device: str, most_bytes: int = SHARD_BYTES
) -> None:
    """One model.safetensors, or several and the index; never more than one in memory."""
    shapes = tensor_shapes(config)
    groups = shards(shapes, most_bytes)
    file_of: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        name = f"model-{number:05}-of-{len(groups):05}.safetensors"
        if len(groups) == 1:
            name = "model.safetensors"
        weights = {each: random_weight(shapes[each], device) for each in names}
        save_file(weights, folder / name, metadata={"format": "pt"})
        file_of.update(dict.fromkeys(names, name))
    if len(groups) > 1:
        total = sum(math.prod(shape) for shape in shapes.values()) * torch.bfloat16.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": file_of}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def make(folder: Path, shape: str, seed: int = 0, device: str = "cpu") -> None:
    """Writes config, weights, and a tokenizer with one made-up word for each token id.

    The weights are generated on `device`: a GPU is faster for a large model. The values depend on
    the device.
    """
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(shape)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2}) + "\n"
    )
    write_weights(folder, config, device)
    words = {f"w{number}": number for number in range(int(str(config["vocab_size"])))}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "w1", "eos_token": "w2"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="smollm2-135m")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="device that generates the weights"
    )
    arguments = parser.parse_args()
    make(arguments.out, arguments.shape, arguments.seed, arguments.device)
    print(f"{arguments.out}: random weights in the shape of {arguments.shape}")


if __name__ == "__main__":
    main()
