"""The table of model families: in what each architecture differs from Llama.

One decoder computes all of them. A family adds a row here, not a class. Which kernels compute
which features is in `unusual_features`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Bias = Literal["never", "config", "always"]
"""Whether matrices have a bias: `config` if config.json's `attention_bias` says so."""

QkNorm = Literal["none", "head", "all"]
"""The RMS norm on q and k: for each head (Qwen3), or for all heads together (OLMo 2)."""

Windows = Literal["all", "qwen", "qwen2_moe", "smollm3", "alternate", "all_but_sixth"]
"""The layers with a sliding window, if the model has one and no `layer_types`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Norms:
    """Names of a layer's norms; None if it has none at that place."""

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    """On the attention's output, before it is added to the residual."""
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertNames:
    """Names of a mixture of experts in a checkpoint, and how its tensors are stored."""

    block: str = "mlp"
    router: str = "gate"
    router_bias: bool = False
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    is_stacked: bool = False
    """All experts are one tensor [num_experts, inputs, outputs], gates and ups alternate, and each
    has a bias (gpt-oss)."""
    shared: str | None = None
    """Name of the expert that all tokens use (Qwen2-MoE)."""
    always_normalises: bool = False
    """The weights of the chosen experts add up to 1, whatever `norm_topk_prob` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """An architecture; the defaults are Llama's."""

    qkv_bias: Bias = "never"
    output_bias: Bias = "never"
    qk_norm: QkNorm = "none"
    norms: Norms = Norms()
    norm_offset: float = 0.0
    """Is added to the weights of all norms (Gemma)."""
    qkv: str | None = None
    """Name of the merged projections of q, k and v; None if the checkpoint has three."""
    gate_up: str | None = None
    """Name of the merged projections of the feed-forward; None if the checkpoint has two."""
    activation: str = "silu"
    """If config.json has none: a key of `inference.model.layers.activations.ACTIVATIONS`."""
    ties_embeddings: bool = False
    """If config.json does not say it."""
    windows: Windows = "qwen"
    scales_embeddings: bool = False
    """By the square root of hidden_size (Gemma)."""
    rotates_pairs: bool = False
    """The rotary embedding rotates (2i, 2i + 1) instead of (i, i + half) (GLM)."""
    rotary_share: float = 1.0
    """The share of a head that is rotated, if config.json does not say it."""
    rope_theta: float = 10_000.0
    """If config.json does not say it."""
    sinks: bool = False
    """A learned score for each head that takes part in the softmax (gpt-oss)."""
    experts: ExpertNames | None = None
    prefix: str = ""
    """Of all names in the checkpoint: "language_model." in multi-modal ones."""
    ignored: tuple[str, ...] = ()
    """Prefixes of tensors of other modalities."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Values of fields that published config.json files omit."""


_GEMMA = {
    "norm_offset": 1.0,
    "activation": "gelu_pytorch_tanh",
    "ties_embeddings": True,
    "scales_embeddings": True,
}
_NORMS_AROUND = Norms(
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)
_GEMMA2 = Family(
    **_GEMMA,  # type: ignore[arg-type]
    qkv_bias="config",
    output_bias="config",
    norms=_NORMS_AROUND,
    windows="alternate",
    defaults={
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    },
)
_GEMMA3_DEFAULTS = {
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "rope_local_base_freq": 10_000.0,
}
_GEMMA3 = Family(
    **_GEMMA,  # type: ignore[arg-type]
    qkv_bias="config",
    output_bias="config",
    qk_norm="head",
    norms=_NORMS_AROUND,
    windows="all_but_sixth",
    rope_theta=1_000_000.0,
    defaults=_GEMMA3_DEFAULTS,
)
_GEMMA3_MULTIMODAL = Family(
    **_GEMMA,  # type: ignore[arg-type]
    qkv_bias="config",
    output_bias="config",
    qk_norm="head",
    norms=_NORMS_AROUND,
    windows="all_but_sixth",
    rope_theta=1_000_000.0,
    prefix="language_model.",
    ignored=("vision_tower.", "multi_modal_projector."),
    defaults={
        **_GEMMA3_DEFAULTS,
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
    },
)
_GLM = {
    "qkv_bias": "config",
    "gate_up": "gate_up_proj",
    "rotates_pairs": True,
    "rotary_share": 0.5,
    "defaults": {"attention_bias": True},
}

FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(qkv_bias="config", output_bias="config"),
    "MistralForCausalLM": Family(windows="all"),
    "Qwen2ForCausalLM": Family(qkv_bias="always"),
    "Qwen3ForCausalLM": Family(qkv_bias="config", output_bias="config", qk_norm="head"),
    "SmolLM3ForCausalLM": Family(
        qkv_bias="config", output_bias="config", ties_embeddings=True, windows="smollm3"
    ),
    "GemmaForCausalLM": Family(**_GEMMA, qkv_bias="config", output_bias="config"),  # type: ignore[arg-type]
    "Gemma2ForCausalLM": _GEMMA2,
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3_MULTIMODAL,
    "Phi3ForCausalLM": Family(qkv="qkv_proj", gate_up="gate_up_proj", windows="all"),
    "Olmo2ForCausalLM": Family(
        qkv_bias="config",
        output_bias="config",
        qk_norm="all",
        norms=Norms(
            before_attention=None,
            after_attention="post_attention_layernorm",
            before_mlp=None,
            after_mlp="post_feedforward_layernorm",
        ),
    ),
    "GraniteForCausalLM": Family(qkv_bias="config", output_bias="config"),
    "GlmForCausalLM": Family(**_GLM),  # type: ignore[arg-type]
    "Glm4ForCausalLM": Family(
        **_GLM,  # type: ignore[arg-type]
        norms=Norms(after_attention="post_self_attn_layernorm", after_mlp="post_mlp_layernorm"),
    ),
    "Qwen2MoeForCausalLM": Family(
        qkv_bias="always", windows="qwen2_moe", experts=ExpertNames(shared="shared_expert")
    ),
    "Qwen3MoeForCausalLM": Family(
        qkv_bias="config",
        output_bias="config",
        qk_norm="head",
        windows="all",
        experts=ExpertNames(),
    ),
    "MixtralForCausalLM": Family(
        windows="all",
        rope_theta=1_000_000.0,
        experts=ExpertNames(
            block="block_sparse_moe", gate="w1", up="w3", down="w2", always_normalises=True
        ),
    ),
    "GptOssForCausalLM": Family(
        qkv_bias="config",
        output_bias="config",
        activation="clamped_swiglu",
        windows="alternate",
        rope_theta=150_000.0,
        sinks=True,
        experts=ExpertNames(
            router="router", router_bias=True, is_stacked=True, always_normalises=True
        ),
        defaults={"attention_bias": True},
    ),
}
"""All supported architectures, by the name in config.json."""
