"""Small random encoders of every family, saved as folders, and transformers' results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

VOCAB_SIZE = 99

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
    "pad_token_id": 1,
    "attn_implementation": "eager",
}
_DISTILBERT = {"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4}


class Kind(NamedTuple):
    """A class of transformers and its configuration."""

    model: Any
    config: Any
    fields: Mapping[str, Any] = {}


EMBEDDINGS: dict[str, Kind] = {
    "bert": Kind(transformers.BertModel, transformers.BertConfig),
    "bert-tanh": Kind(transformers.BertModel, transformers.BertConfig, {"hidden_act": "gelu_new"}),
    "roberta": Kind(transformers.RobertaModel, transformers.RobertaConfig, {"type_vocab_size": 1}),
    "xlm-roberta": Kind(
        transformers.XLMRobertaModel, transformers.XLMRobertaConfig, {"type_vocab_size": 1}
    ),
    "distilbert": Kind(transformers.DistilBertModel, transformers.DistilBertConfig, _DISTILBERT),
}
CROSS_ENCODERS: dict[str, Kind] = {
    "bert": Kind(transformers.BertForSequenceClassification, transformers.BertConfig),
    "xlm-roberta": Kind(
        transformers.XLMRobertaForSequenceClassification,
        transformers.XLMRobertaConfig,
        {"type_vocab_size": 1},
    ),
    "distilbert": Kind(
        transformers.DistilBertForSequenceClassification,
        transformers.DistilBertConfig,
        _DISTILBERT,
    ),
}


def save(kind: Kind, folder: Path, **fields: Any) -> Any:
    """Saves a random model and returns it."""
    torch.manual_seed(7)
    config = kind.config(**{**_SHAPE, **kind.fields, "num_labels": 1, **fields})
    model = kind.model(config).eval()
    for parameter in model.parameters():
        # Larger than the usual ones, so that a wrong weight or position changes the result.
        parameter.data.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    return model


def write_modules(folder: Path, pooling: str, *, normalizes: bool = True) -> None:
    """The files of sentence-transformers."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalizes else [])]
    modules = [
        {"idx": index, "path": f"{index}_{kind}" if index else "", "type": f"st.models.{kind}"}
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    chosen = {f"pooling_mode_{mode}": mode.startswith(f"{pooling}_t") for mode in modes}
    (folder / "1_Pooling/config.json").write_text(json.dumps(chosen))


@torch.inference_mode()
def reference_vector(
    model: Any, token_ids: Sequence[int], pooling: str = "mean", *, normalizes: bool = True
) -> torch.Tensor:
    """[hidden_size], one text at a time."""
    hidden = model(torch.tensor([list(token_ids)])).last_hidden_state[0]
    rows = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.amax(0)}
    vector = rows[pooling]
    return torch.nn.functional.normalize(vector, dim=-1) if normalizes else vector


@torch.inference_mode()
def reference_score(model: Any, token_ids: Sequence[int], num_first: int) -> float:
    """The logit of one pair."""
    asked: dict[str, torch.Tensor] = {"input_ids": torch.tensor([list(token_ids)])}
    if getattr(model.config, "type_vocab_size", 1) > 1:
        types = [0] * num_first + [1] * (len(token_ids) - num_first)
        asked["token_type_ids"] = torch.tensor([types])
    return float(model(**asked).logits[0, 0])


def random_texts(*lengths: int) -> list[list[int]]:
    """Token ids of texts with these lengths, without the padding token."""
    generator = torch.Generator().manual_seed(len(lengths))
    return [
        torch.randint(2, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths
    ]
