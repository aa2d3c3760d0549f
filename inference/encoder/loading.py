"""Builds an encoder from a model's folder: configuration, weights, warm-up."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import torch

from inference.encoder.batch import EncoderInput
from inference.encoder.config import EncoderConfig, load_config
from inference.encoder.engine import LoadedEncoder
from inference.encoder.layers import Head, Reader
from inference.encoder.model import Encoder, EncoderModel
from inference.encoder.native_encoder import NativeEncoder, unsupported_reason
from inference.encoder.queue import EncoderQueue
from inference.encoder.torch_encoder import TorchEncoder
from inference.engine.errors import ModelLoadError
from inference.engine.interface import ModelInfo
from inference.engine.threads import available_cpus
from inference.model.identity import model_sha256, read_vocabulary_sha256
from inference.model.loading import device_name, log_unused, select_device
from inference.model.native.packing import WeightType
from inference.model.weights.weights import Weights, open_weights
from inference.settings import InferenceSettings
from mesh.protocol.model_kind import ModelKind

logger = logging.getLogger(__name__)

BATCH_SECONDS = 0.05
"""Time that a batch should take, by the measured speed: a new call waits at most for the batch in
progress, and larger batches are not computed faster."""

WARM_UP_TOKENS = (2, 128, 256)
"""Lengths of the texts of the warm-up."""

_TYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.float32,
}
"""Type of the tensors in memory; of int8 those that are no matrices."""


def load_encoder(settings: InferenceSettings, folder: Path) -> LoadedEncoder:
    """Loads the model and returns a warm encoder; blocks meanwhile. Raises ModelLoadError."""
    try:
        return _load_encoder(settings, folder)
    except (RuntimeError, MemoryError, OSError) as error:
        # torch's and the device's own errors, such as too little memory.
        logger.debug("loading failed", exc_info=True)
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ModelLoadError(f"{folder}: the model cannot be loaded: {reason}") from error


def _load_encoder(settings: InferenceSettings, folder: Path) -> LoadedEncoder:
    started = time.monotonic()
    device = select_device(settings.device)
    threads = settings.threads or available_cpus()
    if device.type == "cpu":
        torch.set_num_threads(threads)
    config = _limited(load_config(folder), settings.max_context)
    name = _weight_type(settings.dtype, config, device)
    weights = open_weights(folder)
    model = _read_model(settings, config, weights, name, device)
    info = _model_info(settings, folder, model, name, weights)
    max_num_batched_tokens = max(settings.max_num_batched_tokens, config.max_tokens)
    queue = EncoderQueue(model, max_num_batched_tokens, BATCH_SECONDS)
    _warm_up(model)
    logger.info(
        "model loaded",
        extra={
            "model": info.name,
            "kind": info.kind.value,
            "num_parameters": info.num_parameters,
            "dtype": name,
            "model_sha256": info.model_sha256,
            "vocabulary_sha256": info.vocabulary_sha256,
            "device": str(device),
            "kernels": type(model.encoder).__name__,
            "threads": threads,
            "duration_seconds": time.monotonic() - started,
        },
    )
    return LoadedEncoder(info, queue, max_num_batched_tokens)


def _read_model(
    settings: InferenceSettings,
    config: EncoderConfig,
    weights: Weights,
    name: str,
    device: torch.device,
) -> EncoderModel:
    reason = _unsupported_native(config, name, device, settings.kernels)
    if settings.kernels == "native" and reason is not None:
        raise ModelLoadError(f"INFERENCE_KERNELS is native, but {reason}")
    # The native encoder quantises the matrices by itself.
    is_int8 = name == "int8" and reason is not None
    reader = Reader(weights, config, _TYPES[name], device, is_int8=is_int8)
    encoder: Encoder
    if reason is None:
        kind: WeightType = name  # type: ignore[assignment]  # `_unsupported_native` rejects others
        encoder = NativeEncoder(config, reader, kind, settings.threads or available_cpus())
        # The encoder has its own thread pool; torch's threads would spin on the same cores.
        torch.set_num_threads(1)
    else:
        if device.type == "cpu" and settings.kernels == "auto":
            logger.warning("native encoder unavailable, using torch", extra={"reason": reason})
        encoder = TorchEncoder(config, reader, device)
    head = Head(reader) if config.scores_pairs else None
    reader.skip_unused()
    log_unused(weights)
    return EncoderModel(config, encoder, head, reader.num_parameters)


def _unsupported_native(
    config: EncoderConfig, name: str, device: torch.device, kernels: str
) -> str | None:
    """Why the native encoder cannot compute the model; None if it can."""
    if kernels in ("torch", "triton"):
        return f"INFERENCE_KERNELS is {kernels}"
    if device.type != "cpu":
        return f"the device is {device.type}"
    if name == "float16":
        return "dtype float16 is supported by torch only"
    return unsupported_reason(config)


def _limited(config: EncoderConfig, max_context: int) -> EncoderConfig:
    """With the setting's limit of tokens, which may exceed the one that the files recommend."""
    if max_context > config.max_positions:
        raise ModelLoadError(
            f"INFERENCE_MAX_CONTEXT must be at most the model's {config.max_positions} positions. "
            f"Given: {max_context}"
        )
    return replace(config, max_tokens=max_context) if max_context else config


def _weight_type(wanted: str, config: EncoderConfig, device: torch.device) -> str:
    """auto: float32 on a CPU; on a GPU the type in the files, of float32 ones float16."""
    if wanted == "auto":
        stored = "float16" if config.dtype == "float32" else config.dtype
        wanted = "float32" if device.type == "cpu" else stored
    if wanted not in _TYPES or (wanted == "int8" and device.type != "cpu"):
        allowed = [name for name in _TYPES if name != "int8" or device.type == "cpu"]
        raise ModelLoadError(
            f"INFERENCE_DTYPE must be one of {', '.join(allowed)} for an encoder on this device. "
            f"Given: {wanted}"
        )
    return wanted


def _model_info(
    settings: InferenceSettings, folder: Path, model: EncoderModel, name: str, weights: Weights
) -> ModelInfo:
    config = model.config
    vocabulary = read_vocabulary_sha256(folder)
    return ModelInfo(
        name=settings.served_name,
        architecture=config.architecture,
        dtype=name,
        device=device_name(model.encoder.device),
        vocab_size=config.vocab_size,
        max_context=config.max_tokens,
        num_parameters=model.num_parameters,
        eos_token_ids=(),
        vocabulary_sha256=vocabulary,
        model_sha256=model_sha256(config, name, vocabulary, weights),
        kind=ModelKind.SCORE if config.scores_pairs else ModelKind.EMBEDDING,
        embedding_length=0 if config.scores_pairs else config.hidden_size,
    )


def _warm_up(model: EncoderModel) -> None:
    """So that no request pays for lazy set-up."""
    for length in WARM_UP_TOKENS:
        length = min(length, model.config.max_tokens)
        model.compute([EncoderInput([0] * length, length)])
