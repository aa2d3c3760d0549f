"""A small random model with a tokenizer, so that its tokens decode to text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

EOS = (1, 2)
VOCAB_SIZE = 420
"""Slightly more ids than the tokenizer has, as in many models."""

_TEXT = ['{"name": "value", "items": [1, 2, 3], "done": true, "none": null, "no": false}'] * 20


def make_tokenizer() -> Tokenizer:
    """A byte-level tokenizer with merges typical of JSON, and three special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|bos|>", "<|end|>", "<|eot|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    return tokenizer


def save_spelling(folder: Path) -> None:
    """Write the model, with fixed random weights, and its tokenizer.json."""
    torch.manual_seed(11)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        eos_token_id=list(EOS),
        bos_token_id=0,
        pad_token_id=None,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(8)
    model.save_pretrained(folder)
    make_tokenizer().save(str(folder / "tokenizer.json"))


def random_schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    """A random schema whose values have a bounded length."""
    kinds = ["integer", "string", "pattern", "boolean", "null", "enum", "const", "date"]
    if depth:
        kinds += ["array", "object", "object", "anyOf", "tuple"]
    match rng.choice(kinds):
        case "integer":
            low = rng.randint(-1000, 1000)
            return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 5000)}
        case "string":
            shortest = rng.randint(0, 3)
            longest = shortest + rng.randint(0, 6)
            return {"type": "string", "minLength": shortest, "maxLength": longest}
        case "pattern":
            return {"type": "string", "pattern": rng.choice([r"^[a-z]{2,5}$", r"^\d{3}-\d{4}$"])}
        case "date":
            return {"type": "string", "format": "date"}
        case "enum":
            return {"enum": rng.sample([1, "two", None, True, [3], {"four": 5}, -6.5], 3)}
        case "const":
            return {"const": rng.choice(["fixed", 7, False, ["a", 1]])}
        case "array" | "tuple" | "object" | "anyOf" as kind:
            return _random_container(kind, rng, depth)
        case kind:
            return {"type": kind}


def _random_container(kind: str, rng: random.Random, depth: int) -> dict[str, Any]:
    match kind:
        case "array":
            least = rng.randint(0, 2)
            return {
                "type": "array",
                "items": random_schema(rng, depth - 1),
                "minItems": least,
                "maxItems": least + rng.randint(0, 3),
            }
        case "tuple":
            items = [random_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]
            return {
                "type": "array",
                "prefixItems": items,
                "items": False,
                "minItems": len(items),
            }
        case "object":
            names = rng.sample(
                ["name", "items", "ünïcode", "a b", "n", 'quo"te'], rng.randint(0, 4)
            )
            return {
                "type": "object",
                "properties": {name: random_schema(rng, depth - 1) for name in names},
                "required": [name for name in names if rng.random() < 0.6],
                "additionalProperties": False,
            }
        case _:
            return {"anyOf": [random_schema(rng, depth - 1) for _ in range(2)]}
