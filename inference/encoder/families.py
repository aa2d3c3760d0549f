"""The families of encoders: the names of their tensors and where they differ, one table each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Names of tensors, without the family's prefix and without `.weight` and `.bias`."""

    prefix: str
    """Put before the names by checkpoints with a head; optional in those without one."""
    layer: str
    """Of a layer, with `{}` for its number."""
    query: str
    key: str
    value: str
    attention_output: str
    attention_norm: str
    inner: str
    outer: str
    output_norm: str
    head: tuple[str, str]
    """The two matrices of a classification head; the first has the prefix if it is a pooler."""
    head_has_prefix: bool
    head_activation: str
    has_token_types: bool
    offsets_positions: bool
    """Positions begin after `pad_token_id`, as in RoBERTa."""


_BERT = Family(
    prefix="bert.",
    layer="encoder.layer.{}.",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    inner="intermediate.dense",
    outer="output.dense",
    output_norm="output.LayerNorm",
    head=("pooler.dense", "classifier"),
    head_has_prefix=True,
    head_activation="tanh",
    has_token_types=True,
    offsets_positions=False,
)
_ROBERTA = Family(
    prefix="roberta.",
    layer=_BERT.layer,
    query=_BERT.query,
    key=_BERT.key,
    value=_BERT.value,
    attention_output=_BERT.attention_output,
    attention_norm=_BERT.attention_norm,
    inner=_BERT.inner,
    outer=_BERT.outer,
    output_norm=_BERT.output_norm,
    head=("classifier.dense", "classifier.out_proj"),
    head_has_prefix=False,
    head_activation="tanh",
    has_token_types=True,
    offsets_positions=True,
)
_DISTILBERT = Family(
    prefix="distilbert.",
    layer="transformer.layer.{}.",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    attention_norm="sa_layer_norm",
    inner="ffn.lin1",
    outer="ffn.lin2",
    output_norm="output_layer_norm",
    head=("pre_classifier", "classifier"),
    head_has_prefix=False,
    head_activation="relu",
    has_token_types=False,
    offsets_positions=False,
)

EMBEDDING_ARCHITECTURES: Mapping[str, Family] = {
    "BertModel": _BERT,
    "RobertaModel": _ROBERTA,
    "XLMRobertaModel": _ROBERTA,
    "CamembertModel": _ROBERTA,
    "DistilBertModel": _DISTILBERT,
}
"""Architectures of config.json that give embeddings."""

SCORE_ARCHITECTURES: Mapping[str, Family] = {
    "BertForSequenceClassification": _BERT,
    "RobertaForSequenceClassification": _ROBERTA,
    "XLMRobertaForSequenceClassification": _ROBERTA,
    "CamembertForSequenceClassification": _ROBERTA,
    "DistilBertForSequenceClassification": _DISTILBERT,
}
"""Architectures of config.json that score pairs."""

ARCHITECTURES: Mapping[str, Family] = {**EMBEDDING_ARCHITECTURES, **SCORE_ARCHITECTURES}
