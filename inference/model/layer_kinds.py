"""Which layers of a model have a sliding window, no rotary embedding, or experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from inference.engine.errors import ModelLoadError
from inference.model.config_files import ConfigFields
from inference.model.families import Family

_KINDS = ("full_attention", "sliding_attention")


def windowed_layers(fields: ConfigFields, family: Family) -> frozenset[int]:
    """The layers whose tokens see the last `sliding_window` tokens only."""
    if fields.sliding_window is None:
        return frozenset()
    layers = range(fields.num_hidden_layers)
    if fields.layer_types is not None:
        unknown = set(fields.layer_types) - set(_KINDS)
        if unknown:
            raise ModelLoadError(
                f"config.json: layer_types must be of {', '.join(_KINDS)}. "
                f"Given: {', '.join(sorted(unknown))!r:.80}"
            )
        kinds = zip(layers, fields.layer_types, strict=False)
        return frozenset(number for number, kind in kinds if kind == "sliding_attention")
    return frozenset(filter(_WINDOW_RULES[family.windows](fields, family), layers))


Rule = Callable[[int], bool]


def _qwen(fields: ConfigFields, _: Family) -> Rule:
    # Qwen's files set a window and disable it with a field.
    return lambda number: bool(fields.use_sliding_window) and number >= fields.max_window_layers


def _qwen2_moe(fields: ConfigFields, _: Family) -> Rule:
    return lambda number: (
        bool(fields.use_sliding_window) and number % 2 == 0 and number < fields.max_window_layers
    )


def _smollm3(fields: ConfigFields, family: Family) -> Rule:
    without = no_rope_layers(fields, family)
    return lambda number: bool(fields.use_sliding_window) and number in without


def _all(fields: ConfigFields, _: Family) -> Rule:
    # Qwen3-MoE's files, too, set a window and disable it.
    return lambda _: fields.use_sliding_window is not False


_WINDOW_RULES: Mapping[str, Callable[[ConfigFields, Family], Rule]] = {
    "all": _all,
    "qwen": _qwen,
    "qwen2_moe": _qwen2_moe,
    "smollm3": _smollm3,
    "alternate": lambda *_: lambda number: number % 2 == 0,
    "all_but_sixth": lambda fields, _: (
        lambda number: (number + 1) % fields.sliding_window_pattern != 0
    ),
}


def no_rope_layers(fields: ConfigFields, family: Family) -> frozenset[int]:
    """The layers without a rotary embedding."""
    if family.windows != "smollm3":
        return frozenset()
    num_layers = fields.num_hidden_layers
    rotates = fields.no_rope_layers  # despite the name, 1 means that the layer has rope
    if rotates is None:
        interval = fields.no_rope_layer_interval
        return frozenset(range(interval - 1, num_layers, interval))
    return frozenset(number for number, value in enumerate(rotates[:num_layers]) if not value)


def expert_layers(fields: ConfigFields, family: Family) -> frozenset[int]:
    """The layers whose feed-forward is a mixture of experts."""
    if family.experts is None:
        return frozenset()
    dense = set(fields.mlp_only_layers)
    return frozenset(
        number
        for number in range(fields.num_hidden_layers)
        if number not in dense and (number + 1) % fields.decoder_sparse_step == 0
    )
