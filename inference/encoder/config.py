"""An encoder's configuration: config.json and the files of sentence-transformers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, Field

from inference.encoder.families import ARCHITECTURES, SCORE_ARCHITECTURES, Family
from inference.engine.errors import ModelLoadError
from inference.model.config_files import (
    MAX_IDS,
    ArchitectureFields,
    Fields,
    Layers,
    Positions,
    Size,
    Whole,
    parse_fields,
    read_json,
    read_json_list,
)

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")

_MODULES = "modules.json"
_SCORE_ACTIVATIONS = {"Identity": False, "Sigmoid": True}


class Pooling(StrEnum):
    """How the hidden states of a text become one vector."""

    CLS = "cls"
    """That of the first token."""
    MEAN = "mean"
    """Their mean, special tokens included."""
    MAX = "max"
    """The highest value of each dimension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """An encoder's sizes, and how its hidden states become vectors or scores."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_positions: int
    """Rows of the table of positions."""
    first_position: int
    """Row of a text's first token."""
    num_token_types: int
    """0: the family has none."""
    layer_norm_eps: float
    activation: str
    pooling: Pooling
    normalizes: bool
    """Vectors are scaled to length 1."""
    has_sigmoid: bool
    """Scores are mapped to 0 to 1."""
    max_tokens: int
    """Most tokens of a text: what the files recommend, or what the table of positions allows."""
    dtype: str

    @property
    def family(self) -> Family:
        return ARCHITECTURES[self.architecture]

    @property
    def scores_pairs(self) -> bool:
        """Whether it is a cross-encoder."""
        return self.architecture in SCORE_ARCHITECTURES

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def max_positions(self) -> int:
        """Most tokens that have a position."""
        return self.num_positions - self.first_position


class _ScoreFields(Fields):
    """The part of config.json that sentence-transformers writes for a cross-encoder."""

    activation_fn: str = "torch.nn.modules.activation.Sigmoid"


class _EncoderFields(Fields):
    """config.json; the second names are DistilBERT's."""

    vocab_size: Annotated[Whole, Field(ge=1, le=MAX_IDS)]
    hidden_size: Size = Field(validation_alias=AliasChoices("hidden_size", "dim"))
    intermediate_size: Size = Field(
        validation_alias=AliasChoices("intermediate_size", "hidden_dim")
    )
    num_hidden_layers: Layers = Field(
        validation_alias=AliasChoices("num_hidden_layers", "n_layers")
    )
    num_attention_heads: Size = Field(
        validation_alias=AliasChoices("num_attention_heads", "n_heads")
    )
    max_position_embeddings: Positions
    type_vocab_size: Annotated[Whole, Field(ge=1, le=64)] = 2
    pad_token_id: Annotated[Whole, Field(ge=0, le=MAX_IDS)] = 0
    hidden_act: str = Field("gelu", validation_alias=AliasChoices("hidden_act", "activation"))
    layer_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-12
    position_embedding_type: str = "absolute"
    is_decoder: bool = False
    id2label: dict[str, object] | None = None
    num_labels: Whole | None = None
    sentence_transformers: _ScoreFields = _ScoreFields()
    sbert_ce_default_activation_function: str | None = None
    dtype: str | None = None
    torch_dtype: str | None = None

    @property
    def num_classes(self) -> int:
        if self.id2label is not None:
            return len(self.id2label)
        return self.num_labels or 2


class _PoolingFields(Fields):
    """config.json of sentence-transformers' module Pooling."""

    pooling_mode_cls_token: bool = False
    pooling_mode_mean_tokens: bool = False
    pooling_mode_max_tokens: bool = False
    pooling_mode_mean_sqrt_len_tokens: bool = False
    pooling_mode_weightedmean_tokens: bool = False
    pooling_mode_lasttoken: bool = False
    pooling_mode: str | None = None
    include_prompt: bool = True


class _SentenceFields(Fields):
    """sentence_bert_config.json, or of another family."""

    max_seq_length: Positions | None = None


class _Module(Fields):
    """An entry of modules.json."""

    path: str = ""
    type: str


def is_encoder(folder: Path) -> bool:
    """Whether the model in `folder` is an encoder. Raises ModelLoadError."""
    return _architecture(folder) in ARCHITECTURES


def load_config(folder: Path) -> EncoderConfig:
    """The configuration of the encoder in `folder`. Raises ModelLoadError naming file and field."""
    path = folder / "config.json"
    architecture = _architecture(folder)
    fields = parse_fields(_EncoderFields, read_json(path, required=True), path)
    family = ARCHITECTURES[architecture]
    _check(fields, architecture, path)
    pooling, normalizes = _sentence_modules(folder)
    first = fields.pad_token_id + 1 if family.offsets_positions else 0
    room = fields.max_position_embeddings - first
    if room < 1:
        raise ModelLoadError(
            f"{path}: max_position_embeddings must be above pad_token_id + 1 ({first}). "
            f"Given: {fields.max_position_embeddings}"
        )
    return EncoderConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        intermediate_size=fields.intermediate_size,
        num_layers=fields.num_hidden_layers,
        num_heads=fields.num_attention_heads,
        num_positions=fields.max_position_embeddings,
        first_position=first,
        num_token_types=fields.type_vocab_size if family.has_token_types else 0,
        layer_norm_eps=fields.layer_norm_eps,
        activation=fields.hidden_act,
        pooling=pooling,
        normalizes=normalizes,
        has_sigmoid=_has_sigmoid(fields, path),
        max_tokens=min(room, _max_seq_length(folder) or room),
        dtype=fields.dtype or fields.torch_dtype or "float32",
    )


def _architecture(folder: Path) -> str:
    path = folder / "config.json"
    content = read_json(path, required=False)
    architectures = parse_fields(ArchitectureFields, content, path).architectures
    return architectures[0] if architectures else ""


def _check(fields: _EncoderFields, architecture: str, path: Path) -> None:
    """Raises ModelLoadError for what is not computed, and for contradictions."""
    if fields.position_embedding_type != "absolute":
        raise ModelLoadError(
            f"{path}: position_embedding_type must be absolute. "
            f"Given: {fields.position_embedding_type!r}"
        )
    if fields.is_decoder:
        raise ModelLoadError(f"{path}: is_decoder must be false for an encoder. Given: true")
    if fields.hidden_act not in ACTIVATIONS:
        raise ModelLoadError(
            f"{path}: hidden_act must be one of {', '.join(ACTIVATIONS)}. "
            f"Given: {fields.hidden_act!r}"
        )
    if fields.hidden_size % fields.num_attention_heads:
        raise ModelLoadError(
            f"{path}: hidden_size must be a multiple of num_attention_heads "
            f"({fields.num_attention_heads}). Given: {fields.hidden_size}"
        )
    if architecture in SCORE_ARCHITECTURES and fields.num_classes != 1:
        raise ModelLoadError(
            f"{path}: a cross-encoder must have 1 label (id2label). Given: {fields.num_classes}"
        )


def _has_sigmoid(fields: _EncoderFields, path: Path) -> bool:
    # The second field is of older versions of sentence-transformers.
    old = fields.sbert_ce_default_activation_function
    name = old or fields.sentence_transformers.activation_fn
    kind = name.rpartition(".")[2]
    if kind not in _SCORE_ACTIVATIONS:
        raise ModelLoadError(
            f"{path}: the activation of scores must be Identity or Sigmoid. Given: {name!r}"
        )
    return _SCORE_ACTIVATIONS[kind]


def _sentence_modules(folder: Path) -> tuple[Pooling, bool]:
    """The pooling and whether vectors are normalised.

    Without modules.json, as sentence-transformers: the mean; and of length 1, as in OpenAI's API.
    """
    path = folder / _MODULES
    if not path.is_file():
        return Pooling.MEAN, True
    pooling, normalizes = Pooling.MEAN, False
    for content in read_json_list(path):
        module = parse_fields(_Module, content, path)
        match module.type.rpartition(".")[2]:
            case "Transformer":
                if module.path.strip("./"):
                    raise ModelLoadError(
                        f"{path}: the Transformer must be in the folder itself. "
                        f"Given: {module.path!r}"
                    )
            case "Pooling":
                pooling = _pooling(folder, module.path)
            case "Normalize":
                normalizes = True
            case kind:
                raise ModelLoadError(
                    f"{path}: modules must be Transformer, Pooling and Normalize. Given: {kind}"
                )
    return pooling, normalizes


def _pooling(folder: Path, name: str) -> Pooling:
    if "/" in name or name.startswith("."):
        raise ModelLoadError(f"{folder / _MODULES}: path must be a folder's name. Given: {name!r}")
    path = folder / name / "config.json"
    fields = parse_fields(_PoolingFields, read_json(path, required=True), path)
    if not fields.include_prompt:
        raise ModelLoadError(f"{path}: include_prompt must be true. Given: false")
    chosen = [
        name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for name, value in fields
        if value is True and name.startswith("pooling_mode_")
    ]
    mode = fields.pooling_mode or "+".join(chosen) or Pooling.MEAN.value
    if mode not in list(Pooling):
        raise ModelLoadError(f"{path}: the pooling must be one of cls, mean, max. Given: {mode}")
    return Pooling(mode)


def _max_seq_length(folder: Path) -> int | None:
    """The limit of sentence-transformers, whose file is named after the family."""
    for path in sorted(folder.glob("sentence_*_config.json")):
        fields = parse_fields(_SentenceFields, read_json(path, required=True), path)
        if fields.max_seq_length is not None:
            return fields.max_seq_length
    return None
