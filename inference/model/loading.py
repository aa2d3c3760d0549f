"""Builds an engine from a model's folder: weights, KV cache, scheduler, warm-up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from inference.embedding.embedder import HiddenStateEmbedder
from inference.engine.adapters import Adapters, LoraModule
from inference.engine.admission import Admission
from inference.engine.engine import Engine
from inference.engine.errors import ModelLoadError
from inference.engine.interface import ModelInfo
from inference.engine.threads import available_cpus
from inference.kv_cache.kv_cache import KVCache
from inference.kv_cache.size import num_kv_blocks
from inference.model.config import ModelConfig, load_config
from inference.model.factory import (
    Model,
    ModelOptions,
    activation_type,
    make_model,
    stored_type,
    weight_type,
)
from inference.model.identity import model_sha256, read_vocabulary_sha256
from inference.model.layers.torch_operations import TorchOperations
from inference.model.llama import Llama
from inference.model.lora.adapter import AdapterLoader
from inference.model.native.decoder import NativeDecoder
from inference.model.native.sampler import NativeSampler
from inference.model.weights.weights import Weights, open_weights
from inference.runner.cuda_graphs.cuda_capture import CudaCapture
from inference.runner.cuda_graphs.graphed_model import GraphedModel
from inference.runner.invariance import Invariance
from inference.runner.model_runner import ModelRunner
from inference.sampling.sampler import Sampler
from inference.sampling.sampling_params import SamplingParams
from inference.sampling.torch_sampler import TorchSampler
from inference.scheduler.block_manager import BlockManager
from inference.scheduler.scheduler import Scheduler
from inference.scheduler.sequence import Sequence
from inference.settings import InferenceSettings
from inference.structured_output.masks import MaskWorker
from inference.structured_output.vocabulary import Vocabulary, VocabularySource

logger = logging.getLogger(__name__)

MAX_CAPTURED_ROWS = 512
"""Largest captured step with drafts; in a larger one the GPU takes longer than kernel launches."""

MAX_LOGGED_TENSORS = 8
"""How many unused tensors a log line names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """The settings that `load_engine` reads; `InferenceSettings` describes them."""

    folder: Path
    """The model's folder on this machine."""
    name: str
    """The name that clients request the model by."""
    device: str
    dtype: str
    max_num_seqs: int
    max_num_waiting: int
    max_num_batched_tokens: int
    target_step_seconds: float
    max_context: int
    block_size: int
    kv_cache_tokens: int
    threads: int
    num_speculative_tokens: int
    kernels: str
    cuda_graphs: bool
    batch_invariance: Invariance
    close_objects: bool
    lora_modules: tuple[LoraModule, ...] = ()
    max_loras: int = 0
    max_lora_rank: int = 64
    allow_runtime_lora: bool = False

    @property
    def with_adapters(self) -> bool:
        """Whether the engine serves LoRA adapters."""
        return bool(self.lora_modules) or self.allow_runtime_lora

    @classmethod
    def from_settings(cls, settings: InferenceSettings, folder: Path) -> EngineOptions:
        """The options that the service's settings give, for the model in `folder`."""
        names = {field.name for field in fields(cls)} - {
            *("folder", "name", "batch_invariance", "lora_modules")
        }
        values = {name: getattr(settings, name) for name in names}
        invariance = Invariance(settings.batch_invariance)
        return cls(
            folder=folder,
            name=settings.served_name,
            batch_invariance=invariance,
            lora_modules=settings.lora_module_list,
            **values,
        )

    @classmethod
    def defaults(cls, folder: Path, name: str) -> EngineOptions:
        """The settings' defaults, without reading flags or the environment."""
        return cls.from_settings(InferenceSettings.model_construct(model_name=name), folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class _LoadedModel:
    """A model on its device with its KV cache."""

    config: ModelConfig
    weight_type: str
    vocabulary_sha256: str
    model_sha256: str
    max_context: int
    model: Model
    """Replays CUDA graphs if decode steps are captured, else the same object as `decoder`."""
    decoder: Llama | NativeDecoder
    cache: KVCache
    invariance: Invariance


def load_engine(options: EngineOptions) -> Engine:
    """Loads the model and returns a warm engine; blocks meanwhile.

    Raises ModelLoadError if a file is missing or invalid, or an option does not fit the model.
    """
    try:
        return _load_engine(options)
    except (RuntimeError, MemoryError, OSError) as error:
        # torch's and the device's own errors, such as too little memory; a bug is found at DEBUG.
        logger.debug("loading failed", exc_info=True)
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ModelLoadError(f"{options.folder}: the model cannot be loaded: {reason}") from error


def _load_engine(options: EngineOptions) -> Engine:
    started = time.monotonic()
    device = select_device(options.device)
    threads = options.threads or available_cpus()
    if device.type == "cpu":
        torch.set_num_threads(threads)
    loaded = _load_model(options, device, threads)
    vocabulary = Vocabulary.load(
        VocabularySource(
            str(options.folder),
            loaded.config.vocab_size,
            list(loaded.config.eos_token_ids),
            options.close_objects,
        )
    )
    if vocabulary.problem:
        logger.warning("structured output is disabled", extra={"reason": vocabulary.problem})
    engine = _build_engine(options, loaded, vocabulary)
    _warm_up(engine)
    logger.info(
        "model loaded",
        extra={
            "model": options.name,
            "num_parameters": loaded.model.num_parameters,
            "dtype": loaded.weight_type,
            "model_sha256": loaded.model_sha256,
            "vocabulary_sha256": loaded.vocabulary_sha256,
            "device": str(device),
            "kv_cache_tokens": loaded.cache.num_blocks * options.block_size,
            "kernels": _kernels(loaded.decoder),
            "graphs": loaded.model is not loaded.decoder,
            "batch_invariance": loaded.invariance.value,
            "threads": threads,
            "duration_seconds": time.monotonic() - started,
        },
    )
    return engine


def _load_model(options: EngineOptions, device: torch.device, threads: int) -> _LoadedModel:
    config = load_config(options.folder)
    vocabulary = read_vocabulary_sha256(options.folder)
    weights = open_weights(options.folder)
    max_context = _max_context(options.max_context, config)
    model_options = ModelOptions(
        dtype=options.dtype,
        kernels=options.kernels,
        max_context=max_context,
        block_size=options.block_size,
        threads=threads,
    )
    stored = stored_type(config, weights, device, model_options)
    name = weight_type(options.dtype, config, device, stored)
    decoder = _load_decoder(weights, config, device, replace(model_options, dtype=name))
    invariance = _invariance(options.batch_invariance, decoder)
    capture = _capture(options, decoder, max_context, invariance)
    num_blocks = num_kv_blocks(
        decoder,
        block_size=options.block_size,
        num_tokens=options.kv_cache_tokens,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=_max_batched_tokens(options),
        max_context=max_context,
        capture=capture,
        kinds=invariance.kinds,
    )
    cache = KVCache(config, num_blocks, options.block_size, activation_type(name), device)
    return _LoadedModel(
        config=config,
        weight_type=name,
        vocabulary_sha256=vocabulary,
        model_sha256=model_sha256(config, name, vocabulary, weights),
        max_context=max_context,
        model=decoder if capture is None else capture(cache),
        decoder=decoder,
        cache=cache,
        invariance=invariance,
    )


def _load_decoder(
    weights: Weights, config: ModelConfig, device: torch.device, options: ModelOptions
) -> Llama | NativeDecoder:
    """Reads the weights; logs a warning about tensors that the architecture does not use."""
    decoder = make_model(config, weights, device, options)
    log_unused(weights)
    if isinstance(decoder, NativeDecoder):
        # The decoder has its own thread pool; torch's threads would spin on the same cores.
        torch.set_num_threads(1)
    return decoder


def log_unused(weights: Weights) -> None:
    """Log a warning if a loaded checkpoint has further tensors."""
    unused = weights.unused
    if unused:
        logger.warning(
            "checkpoint has unused tensors",
            extra={
                "num_tensors": len(unused),
                "tensors": ", ".join(unused[:MAX_LOGGED_TENSORS]),
            },
        )


def _build_engine(options: EngineOptions, loaded: _LoadedModel, vocabulary: Vocabulary) -> Engine:
    return Engine(
        model_info=_model_info(options, loaded),
        admission=Admission(
            vocab_size=loaded.config.vocab_size,
            max_context=loaded.max_context,
            kv_capacity_tokens=loaded.cache.num_blocks * options.block_size,
            max_num_seqs=options.max_num_seqs,
            max_num_waiting=options.max_num_waiting,
        ),
        scheduler=Scheduler(
            BlockManager(
                loaded.cache.num_blocks,
                options.block_size,
                separates_seeded=loaded.invariance is Invariance.SEEDED,
            ),
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=_max_batched_tokens(options),
            num_speculative_tokens=options.num_speculative_tokens,
            target_step_seconds=options.target_step_seconds,
        ),
        runner=ModelRunner(
            loaded.model,
            loaded.cache,
            MaskWorker(loaded.config.vocab_size),
            _sampler(loaded.decoder),
            supports_async_scheduling=loaded.model.device.type == "cuda",
            invariance=loaded.invariance,
        ),
        vocabulary=vocabulary,
        embedder=HiddenStateEmbedder(loaded.model, loaded.cache),
        adapters=_adapters(options, loaded),
    )


def _adapters(options: EngineOptions, loaded: _LoadedModel) -> Adapters:
    """The adapters of the settings, loaded. Raises InvalidAdapter or Overloaded."""
    if not options.with_adapters:
        return Adapters()
    adapters = Adapters(
        AdapterLoader(loaded.decoder, loaded.model_sha256, options.max_lora_rank),
        model_name=options.name,
        max_adapters=options.max_loras,
        allows_loading=options.allow_runtime_lora,
    )
    adapters.load_now(options.lora_modules)
    return adapters


def _model_info(options: EngineOptions, loaded: _LoadedModel) -> ModelInfo:
    return ModelInfo(
        name=options.name,
        architecture=loaded.config.architecture,
        dtype=loaded.weight_type,
        device=device_name(loaded.model.device),
        vocab_size=loaded.config.vocab_size,
        max_context=loaded.max_context,
        num_parameters=loaded.model.num_parameters,
        eos_token_ids=loaded.config.eos_token_ids,
        default_sampling=loaded.config.default_sampling,
        vocabulary_sha256=loaded.vocabulary_sha256,
        model_sha256=loaded.model_sha256,
        embedding_length=loaded.config.hidden_size,
    )


def _max_batched_tokens(options: EngineOptions) -> int:
    """At least one token for each running sequence."""
    return max(options.max_num_batched_tokens, options.max_num_seqs)


def _warm_up(engine: Engine) -> None:
    """Runs prefill and decode, greedy and sampled, so that no request pays for lazy set-up."""
    for temperature in (0.0, 1.0):
        params = SamplingParams(max_tokens=2, temperature=temperature, ignore_eos=True)
        engine.add(Sequence("warm-up", [0, 0], params))
        while engine.has_work:
            engine.step()


def _invariance(wanted: Invariance, model: Model) -> Invariance:
    """The batch invariance that the engine provides.

    NONE if the model has no batch-invariant operations, or is invariant without them.
    """
    if isinstance(model, Llama) and model.batch_invariant_operations is not model.operations:
        return wanted
    if model.device.type == "cuda" and wanted is not Invariance.NONE:
        logger.warning("batch invariance is disabled: it needs the Triton kernels")
    return Invariance.NONE


def _capture(
    options: EngineOptions, model: Model, max_context: int, invariance: Invariance
) -> Callable[[KVCache], GraphedModel] | None:
    """Returns a function that captures the decode steps as CUDA graphs; None without capture."""
    if not options.cuda_graphs or model.device.type != "cuda" or not isinstance(model, Llama):
        return None
    if isinstance(model.operations, TorchOperations):
        return None  # their captured step would gather `max_context` tokens for each sequence
    with_drafts = options.max_num_seqs * (1 + options.num_speculative_tokens)
    return lambda cache: GraphedModel(
        model,
        cache,
        max_num_rows=max(options.max_num_seqs, min(with_drafts, MAX_CAPTURED_ROWS)),
        max_context=max_context,
        capture=CudaCapture(),
        kinds=invariance.kinds,
    )


def _sampler(model: Llama | NativeDecoder) -> Sampler:
    """The sampler that uses the same kind of kernels as the model."""
    if isinstance(model, NativeDecoder):
        return NativeSampler(model.pool)
    if isinstance(model.operations, TorchOperations):
        return TorchSampler()
    from inference.model.kernels.sample import gumbel_argmax  # imports Triton, which may be missing

    return TorchSampler(gumbel_argmax)


def _kernels(model: Llama | NativeDecoder) -> str:
    return type(model.operations if isinstance(model, Llama) else model).__name__


def uses_gpu(wanted: str) -> bool:
    """Whether INFERENCE_DEVICE = `wanted` places the model on a GPU."""
    return wanted != "cpu" and torch.cuda.is_available()


def select_device(wanted: str) -> torch.device:
    """The device of INFERENCE_DEVICE = `wanted`. Raises ModelLoadError if it is not visible."""
    if wanted == "cuda" and not uses_gpu(wanted):
        raise ModelLoadError("INFERENCE_DEVICE is cuda, but no CUDA device is visible")
    return torch.device("cuda" if uses_gpu(wanted) else "cpu")


def device_name(device: torch.device) -> str:
    """As `GetModel` reports it."""
    if device.type == "cuda":
        return f"cuda:{torch.cuda.current_device()} {torch.cuda.get_device_name()}"
    return "cpu"


def _max_context(wanted: int, config: ModelConfig) -> int:
    if wanted > config.max_position:
        raise ModelLoadError(
            f"INFERENCE_MAX_CONTEXT must be at most the model's {config.max_position} positions. "
            f"Given: {wanted}"
        )
    return wanted or config.max_position
