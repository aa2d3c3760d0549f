"""Writes a model of random weights in a known shape, as a Hugging Face folder.

python -m benchmarks.make_model --out FOLDER

Speed does not depend on what the weights are, so no download is needed to measure it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

SHAPES: dict[str, dict[str, object]] = {
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


def tensors(config: dict[str, object]) -> dict[str, torch.Tensor]:
    """Random weights in bfloat16, small enough that activations stay in range."""
    hidden, inner, vocab = (
        int(str(config[name])) for name in ("hidden_size", "intermediate_size", "vocab_size")
    )
    heads = int(str(config["num_attention_heads"]))
    kv_size = hidden // heads * int(str(config["num_key_value_heads"]))

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns) * columns**-0.5).bfloat16()

    found = {
        "model.embed_tokens.weight": matrix(vocab, hidden),
        "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
    }
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = matrix(vocab, hidden)
    for number in range(int(str(config["num_hidden_layers"]))):
        prefix = f"model.layers.{number}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{prefix}.{norm}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
        for name, rows, columns in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", kv_size, hidden),
            ("self_attn.v_proj", kv_size, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            found[f"{prefix}.{name}.weight"] = matrix(rows, columns)
    return found


def make(folder: Path, shape: str, seed: int = 0) -> None:
    """Writes config, weights and a tokenizer of as many made-up words as the model has ids."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(shape)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2}) + "\n"
    )
    save_file(tensors(config), folder / "model.safetensors", metadata={"format": "pt"})
    words = {f"w{number}": number for number in range(int(str(config["vocab_size"])))}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "w1", "eos_token": "w2"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="smollm2-135m")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make(arguments.out, arguments.shape, arguments.seed)
    print(f"{arguments.out}: random weights in the shape of {arguments.shape}")


if __name__ == "__main__":
    main()
