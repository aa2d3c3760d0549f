"""Reads the weights of quantised checkpoints: FP8, GPTQ, AWQ, compressed-tensors and MXFP4.

The formats are those of the libraries that write them; each has its own names and layout beside
the unquantised tensors. Integers are read as groups with scales, or expanded; narrow floats are
expanded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from inference.engine.errors import ModelLoadError
from inference.model.layers.grouped import Bits, GroupedWeight
from inference.model.weights.packed_integers import unpack_columns, unpack_rows
from inference.model.weights.safetensors_weights import SafetensorsWeights

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Places of eight consecutive outputs in a word of AWQ."""

_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of four-bit floats (e2m1); the fourth bit is the sign."""

_E8M0_BIAS = 127


class QuantisedWeights(ABC):
    """Tensors of a quantised checkpoint, expanded on demand; see `Weights`."""

    def __init__(self, source: SafetensorsWeights, method: Mapping[str, object]) -> None:
        self._source = source
        self._method = method

    @property
    def stored_bits(self) -> Bits | None:
        """See `Weights.stored_bits`."""
        return None

    @abstractmethod
    def _is_quantised(self, name: str) -> bool: ...

    @abstractmethod
    def _expand(self, name: str) -> Tensor: ...

    def _grouped(self, stem: str) -> GroupedWeight | None:
        """The matrix of this name without `.weight`, if it is of integers in groups."""
        return None

    def __contains__(self, name: str) -> bool:
        return name in self._source or self._is_quantised(name)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Reads a tensor. Raises ModelLoadError if it is missing or has another shape or type."""
        if not self._is_quantised(name):
            return self._source.take(name, shape)
        with _parts_of(name):
            tensor = self._expand(name)
        _check_shape(name, tuple(tensor.shape), shape)
        return tensor

    def take_grouped(self, name: str, shape: tuple[int, ...]) -> GroupedWeight | None:
        """See `Weights.take_grouped`. Raises ModelLoadError like `take`."""
        if not self._is_quantised(name):
            return None
        with _parts_of(name):
            weight = self._grouped(name.rpartition(".")[0])
        if weight is None or not weight.fits_kernels:
            return None
        _check_shape(name, weight.shape, shape)
        return weight

    def skip(self, name: str) -> None:
        """Counts a redundant tensor as used, whether the checkpoint has it or not."""
        self._source.skip(name)

    def skip_all(self, prefix: str) -> None:
        """Counts all tensors whose names begin so as used."""
        self._source.skip_all(prefix)

    def samples(self) -> Iterator[bytes]:
        """Of each stored tensor: name, type, shape, and evenly spaced rows."""
        return self._source.samples()

    @property
    def unused(self) -> list[str]:
        """Names of tensors that were neither taken nor skipped, except for known buffers."""
        return self._source.unused

    def _stored(self, stem: str, part: str) -> Tensor:
        return self._source.take_stored(f"{stem}.{part}")

    def _has(self, stem: str, part: str) -> bool:
        return f"{stem}.{part}" in self._source


class Fp8Weights(QuantisedWeights):
    """Eight-bit floats with a scale for each block, output or tensor."""

    _scales = ("weight_scale_inv", "weight_scale")

    def _is_quantised(self, name: str) -> bool:
        stem, _, kind = name.rpartition(".")
        return kind == "weight" and any(self._has(stem, each) for each in self._scales)

    def _expand(self, name: str) -> Tensor:
        stem = name.rpartition(".")[0]
        weight = self._stored(stem, "weight").float()
        scale = self._stored(
            stem, next(each for each in self._scales if self._has(stem, each))
        ).float()
        self._source.skip(f"{stem}.input_scale")
        self._source.skip(f"{stem}.activation_scale")
        if scale.dim() == 2 and scale.shape[1] > 1:
            scale = _repeated(scale, self._block_size(), weight.shape)
        elif scale.numel() > 1:
            scale = scale.reshape(-1, 1)
        return (weight * scale).bfloat16()

    def _block_size(self) -> tuple[int, int]:
        size = self._method.get("weight_block_size")
        if not isinstance(size, list) or len(size) != 2:
            raise ModelLoadError(
                "config.json: quantization_config.weight_block_size must be two numbers. "
                f"Given: {size!r:.80}"
            )
        return int(size[0]), int(size[1])


class _PackedWeights(QuantisedWeights):
    """Words of integers with scales and zero points for groups of inputs: GPTQ and AWQ."""

    @property
    def stored_bits(self) -> Bits | None:
        """The bits of the configuration."""
        return _bits(self._method.get("bits"))

    def _is_quantised(self, name: str) -> bool:
        stem, _, kind = name.rpartition(".")
        return kind == "weight" and self._has(stem, "qweight")

    def _expand(self, name: str) -> Tensor:
        weight = self._grouped(name.rpartition(".")[0])
        assert weight is not None, "all matrices are in groups"
        return weight.expand().contiguous()


class GptqWeights(_PackedWeights):
    """GPTQ: words of inputs, scales and zero points by group of inputs, which may be permuted."""

    def _grouped(self, stem: str) -> GroupedWeight:
        bits = _bits(self._method.get("bits"))
        codes = unpack_rows(self._stored(stem, "qweight"), bits)  # [inputs, outputs]
        scales = self._stored(stem, "scales")  # [groups, outputs]
        # The first version of the format stores zero points less one.
        is_first = self._method.get("checkpoint_format") != "gptq_v2"
        zeros = unpack_columns(self._stored(stem, "qzeros"), bits) + int(is_first)
        weight = _in_groups(codes.t(), scales.t(), zeros.t(), bits)
        if not self._has(stem, "g_idx"):
            return weight
        return _permuted(weight, self._stored(stem, "g_idx").long())


class AwqWeights(_PackedWeights):
    """AWQ: words of eight outputs in a special order, with scales and zero points by group."""

    def _grouped(self, stem: str) -> GroupedWeight:
        bits = _bits(self._method.get("bits"))
        if bits != 4:
            raise ModelLoadError(
                f"config.json: quantization_config.bits of awq must be 4. Given: {bits}"
            )
        codes = self._outputs(self._stored(stem, "qweight"))  # [inputs, outputs]
        zeros = self._outputs(self._stored(stem, "qzeros"))  # [groups, outputs]
        return _in_groups(codes.t(), self._stored(stem, "scales").t(), zeros.t(), bits)

    @staticmethod
    def _outputs(words: Tensor) -> Tensor:
        values = unpack_columns(words, 4)
        return values.view(len(values), -1, 8)[:, :, _AWQ_ORDER].reshape(values.shape)


class CompressedWeights(QuantisedWeights):
    """compressed-tensors: packed integers by group, or plain int8 or FP8 by output or block."""

    def _is_quantised(self, name: str) -> bool:
        stem, _, kind = name.rpartition(".")
        return kind == "weight" and self._has(stem, "weight_scale")

    @property
    def stored_bits(self) -> Bits | None:
        """The bits of the configuration; None of FP8."""
        arguments = self._weight_arguments()
        if arguments.get("type", "int") != "int":
            return None
        return _bits(arguments.get("num_bits", 8))

    def _grouped(self, stem: str) -> GroupedWeight | None:
        scale = self._stored(stem, "weight_scale")
        self._source.skip(f"{stem}.input_scale")
        if not self._has(stem, "weight"):
            return self._packed(stem, scale)
        codes = self._stored(stem, "weight")
        if codes.dtype is not torch.int8 or "block_structure" in self._weight_arguments():
            return None
        scale = scale.reshape(-1, 1) if scale.dim() < 2 else scale
        middle = torch.full(scale.shape, 128)
        return _in_groups(codes.int() + 128, scale, middle, 8)

    def _expand(self, name: str) -> Tensor:
        stem = name.rpartition(".")[0]
        scale = self._stored(stem, "weight_scale").float()
        self._source.skip(f"{stem}.input_scale")
        if self._has(stem, "weight"):
            weight = self._stored(stem, "weight").float()
            scale = scale.reshape(-1, 1) if scale.dim() < 2 else scale
            block = self._weight_arguments().get("block_structure")
            if isinstance(block, list) and len(block) == 2:
                scale = _repeated(scale, (int(block[0]), int(block[1])), weight.shape)
            return (weight * _spread(scale, weight.shape)).bfloat16()
        return self._packed(stem, scale).expand().contiguous()

    def _packed(self, stem: str, scale: Tensor) -> GroupedWeight:
        outputs, inputs = self._stored(stem, "weight_shape").tolist()
        words = self._stored(stem, "weight_packed")  # [outputs, words of inputs]
        bits = _bits(self._weight_arguments().get("num_bits"))
        middle = 1 << (bits - 1)  # the codes are signed, stored with this offset
        codes = unpack_columns(words, bits)[:outputs, :inputs]
        zeros = torch.full(scale.shape, middle)
        if self._has(stem, "weight_zero_point"):
            zeros = unpack_rows(self._stored(stem, "weight_zero_point"), bits)[:outputs]
        weight = _in_groups(codes, scale, zeros, bits)
        if not self._has(stem, "weight_g_idx"):
            return weight
        return _permuted(weight, self._stored(stem, "weight_g_idx").long())

    def _weight_arguments(self) -> Mapping[str, object]:
        groups = self._method.get("config_groups")
        for group in groups.values() if isinstance(groups, dict) else ():
            weights = group.get("weights") if isinstance(group, dict) else None
            if isinstance(weights, dict):
                return weights
        raise ModelLoadError("config.json: quantization_config.config_groups has no weights")


class Mxfp4Weights(QuantisedWeights):
    """Four-bit floats with a power of two for each 32 (gpt-oss' experts)."""

    def _is_quantised(self, name: str) -> bool:
        return f"{name}_blocks" in self._source

    def _expand(self, name: str) -> Tensor:
        blocks = self._source.take_stored(f"{name}_blocks")  # [experts, outputs, groups, 16]
        scales = self._source.take_stored(f"{name}_scales")  # [experts, outputs, groups]
        table = torch.tensor([*_FP4, *(-each for each in _FP4)], dtype=torch.bfloat16)
        values = torch.stack((table[(blocks & 15).long()], table[(blocks >> 4).long()]), dim=-1)
        exponents = scales.int() - _E8M0_BIAS
        values = torch.ldexp(values.flatten(-2), exponents.unsqueeze(-1)).bfloat16()
        return values.flatten(-2).transpose(1, 2).contiguous()  # [experts, inputs, outputs]


METHODS: Mapping[str, type[QuantisedWeights]] = {
    "fp8": Fp8Weights,
    "fbgemm_fp8": Fp8Weights,
    "gptq": GptqWeights,
    "awq": AwqWeights,
    "compressed-tensors": CompressedWeights,
    "mxfp4": Mxfp4Weights,
}


def expanded(weights: SafetensorsWeights, method: object, path: Path) -> QuantisedWeights:
    """The weights of a checkpoint with this `quantization_config`, expanded on demand.

    Raises ModelLoadError if the method is not supported.
    """
    name = method.get("quant_method") if isinstance(method, dict) else None
    if not isinstance(method, dict) or not isinstance(name, str) or name not in METHODS:
        raise ModelLoadError(
            f"{path}: quantization_config.quant_method {name!r:.80} is not supported; supported "
            f"are {', '.join(METHODS)}"
        )
    return METHODS[name](weights, method)


@contextmanager
def _parts_of(name: str) -> Iterator[None]:
    """Raises ModelLoadError if the stored parts of a tensor do not fit together."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        raise ModelLoadError(
            f"tensor {name} cannot be expanded, its parts do not fit together: {error}"
        ) from error


def _check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        raise ModelLoadError(f"tensor {name} must have shape {list(wanted)}, has {list(found)}")


def _in_groups(codes: Tensor, scales: Tensor, zeros: Tensor, bits: Bits) -> GroupedWeight:
    """Of codes [outputs, inputs], and scales and zero points [outputs or 1, groups]."""
    num_outputs, num_inputs = codes.shape
    if num_inputs % scales.shape[1]:
        # The last group is smaller.
        group = torch.arange(num_inputs) // -(-num_inputs // scales.shape[1])
        scales, zeros = scales[:, group], zeros[:, group]
    is_symmetric = bool((zeros == 1 << (bits - 1)).all())
    return GroupedWeight(
        codes=codes.to(torch.uint8).contiguous(),
        bits=bits,
        scales=scales.float().expand(num_outputs, -1).contiguous(),
        zeros=None if is_symmetric else zeros.float().expand(num_outputs, -1).contiguous(),
    )


def _permuted(weight: GroupedWeight, groups: Tensor) -> GroupedWeight:
    """The same codes with scales of these groups of the inputs [num_inputs], not neighbours."""
    order = torch.argsort(groups, stable=True)
    neighbours = torch.arange(len(groups)) // weight.group_size
    if torch.equal(groups, neighbours):
        return weight
    if torch.equal(groups[order], neighbours):
        return replace(weight, codes=weight.codes[:, order].contiguous(), order=order)
    zeros = weight.zeros
    return replace(
        weight,
        scales=weight.scales[:, groups],
        zeros=None if zeros is None else zeros[:, groups],
    )


def _bits(value: object) -> Bits:
    if value not in (4, 8):
        raise ModelLoadError(
            "config.json: the weights of quantization_config must have 4 or 8 bits. "
            f"Given: {value!r:.80}"
        )
    return 4 if value == 4 else 8


def _repeated(scale: Tensor, block: tuple[int, int], shape: torch.Size) -> Tensor:
    """The scale of each value of a matrix of this shape; the last blocks may be smaller."""
    rows = scale.repeat_interleave(block[0], 0)[: shape[0]]
    return rows.repeat_interleave(block[1], 1)[:, : shape[1]]


def _spread(scale: Tensor, shape: torch.Size) -> Tensor:
    """Scales of blocks repeated to a matrix's shape; one of an axis is left to broadcasting."""
    for axis in (0, 1):
        count = scale.shape[axis]
        if count not in (1, shape[axis]):
            size = -(-shape[axis] // count)
            scale = scale.repeat_interleave(size, axis).narrow(axis, 0, shape[axis])
    return scale
