"""The fields of config.json and generation_config.json that inference reads, with their bounds.

A model's folder is input from outside: a value that no model can have is refused by name, before
anything is allocated or computed from it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from inference.engine.errors import ModelLoadError

MAX_SIZE = 1 << 20
"""Largest width of a model; the largest known ones have a few ten thousand."""

MAX_POSITIONS = 1 << 24

MAX_IDS = 1 << 24

MAX_SHOWN_CHARACTERS = 80

CLAMP = 7.0
"""gpt-oss' limit of the feed-forward's inner values; there are no models with another one."""


def _whole(value: object) -> object:
    """2.0 is a whole number: some tools write sizes in this way."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _listed(value: object) -> object:
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


Whole = Annotated[int, BeforeValidator(_whole)]
Size = Annotated[Whole, Field(ge=1, le=MAX_SIZE)]
Layers = Annotated[Whole, Field(ge=1, le=10_000)]
Positions = Annotated[Whole, Field(ge=1, le=MAX_POSITIONS)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Experts = Annotated[Whole, Field(ge=1, le=10_000)]
TokenId = Annotated[Whole, Field(ge=0, lt=MAX_IDS)]
EndTokens = Annotated[list[TokenId], BeforeValidator(_listed)]


class Fields(BaseModel):
    """Known fields are strict, others are ignored; null is the same as no field."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class RopeFields(Fields):
    """rope_parameters (transformers 5) or rope_scaling (transformers 4)."""

    kind: str = Field("default", validation_alias=AliasChoices("rope_type", "type"))
    rope_theta: Positive | None = None
    partial_rotary_factor: Share | None = None
    factor: Positive | None = None
    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 4.0
    original_max_position_embeddings: Positions | None = None
    attention_factor: Positive | None = None
    mscale: Positive | None = None
    mscale_all_dim: Positive | None = None
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    truncate: bool = True
    short_factor: list[Positive] = []
    long_factor: list[Positive] = []
    full_attention: RopeFields | None = None
    sliding_attention: RopeFields | None = None


class ConfigFields(Fields):
    """config.json; fields without a default are required."""

    vocab_size: Annotated[Whole, Field(ge=1, le=MAX_IDS)]
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Positions
    hidden_act: str | None = None
    hidden_activation: str | None = None
    rms_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    rope_theta: Positive | None = None
    rope_parameters: RopeFields | None = None
    rope_scaling: RopeFields | None = None
    rope_local_base_freq: Positive | None = None
    partial_rotary_factor: Share | None = None
    original_max_position_embeddings: Positions | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: Positions | None = None
    use_sliding_window: bool | None = None
    sliding_window_pattern: Layers = 6
    max_window_layers: Annotated[Whole, Field(ge=0)] = 28
    layer_types: list[str] | None = None
    no_rope_layers: list[Whole] | None = None
    no_rope_layer_interval: Layers = 4
    query_pre_attn_scalar: Positive | None = None
    attention_multiplier: Positive | None = None
    embedding_multiplier: Positive = 1.0
    residual_multiplier: Positive = 1.0
    logits_scaling: Positive = 1.0
    attn_logit_softcapping: Positive | None = None
    final_logit_softcapping: Positive | None = None
    num_experts: Experts | None = Field(
        None, validation_alias=AliasChoices("num_local_experts", "num_experts")
    )
    num_experts_per_tok: Experts | None = None
    moe_intermediate_size: Size | None = None
    shared_expert_intermediate_size: Size | None = None
    norm_topk_prob: bool = False
    decoder_sparse_step: Layers = 1
    mlp_only_layers: list[Whole] = []
    swiglu_limit: Positive = CLAMP
    dtype: str | None = None
    torch_dtype: str | None = None
    eos_token_id: EndTokens = []


class GenerationFields(Fields):
    """generation_config.json; its sampling parameters are checked with the API's bounds."""

    eos_token_id: EndTokens | None = None
    do_sample: bool = False


class ArchitectureFields(Fields):
    """The first field of config.json that is read: the others depend on it."""

    architectures: list[str] = []


class TextFields(Fields):
    """config.json of a model of several modalities."""

    text_config: dict[str, object] = {}


F = TypeVar("F", bound=Fields)


def parse_fields(kind: type[F], content: dict[str, object], path: Path) -> F:
    """The fields of a file's content. Raises ModelLoadError that names the first invalid one."""
    try:
        return kind.model_validate(_without_null(content))
    except ValidationError as error:
        raise ModelLoadError(f"{path}: {_describe(error)}") from error


def read_json(path: Path, *, required: bool) -> dict[str, object]:
    """A file's JSON object; empty if it is missing and not required. Raises ModelLoadError."""
    if not path.is_file():
        if required:
            raise ModelLoadError(f"{path} is missing")
        return {}
    content = _read(path)
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} is not a JSON object")
    return content


def read_json_list(path: Path) -> list[dict[str, object]]:
    """A file's JSON list of objects. Raises ModelLoadError."""
    content = _read(path)
    if not isinstance(content, list) or not all(isinstance(each, dict) for each in content):
        raise ModelLoadError(f"{path} is not a JSON list of objects")
    return content


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} is not valid JSON: {error}") from error
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from error


def _without_null(content: dict[str, object]) -> dict[str, object]:
    return {
        name: _without_null(value) if isinstance(value, dict) else value
        for name, value in content.items()
        if value is not None
    }


def _describe(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    field = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"{field} is missing"
    rule = problem["msg"].removeprefix("Input ").replace("should", "must", 1)
    rule = rule.partition(" or instance of ")[0]
    given = repr(problem["input"])
    if len(given) > MAX_SHOWN_CHARACTERS:
        given = given[:MAX_SHOWN_CHARACTERS] + "…"
    return f"{field} {rule}. Given: {given}"
