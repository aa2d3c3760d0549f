"""Builds the service from its settings."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from inference.api import metrics
from inference.api.service import InferenceService
from inference.api.spans import StepSpans
from inference.api.vllm_engine.model_files import ModelFiles
from inference.api.vllm_engine.service import VllmEngineService
from inference.engine.errors import EngineError
from inference.engine.fake_engine import FakeEngine
from inference.engine.interface import EngineClient
from inference.model.file_patterns import FILE_PATTERNS
from inference.settings import InferenceSettings
from mesh.hub.model_folder import ModelNotFoundError, model_folder
from mesh.observability import telemetry
from mesh.process.backlog import Backlog
from mesh.process.lifecycle import SetReady, StartupError
from mesh.rpc.server import Servicer

logger = logging.getLogger("inference")


@dataclass(frozen=True, slots=True)
class Application:
    """The running service."""

    engine: EngineClient
    servicers: Sequence[Servicer]

    def called_channels(self) -> Sequence[grpc.aio.Channel]:
        """None: this service calls no other."""
        return ()

    async def watch_ready(self, set_ready: SetReady) -> None:
        """Report whether the engine is healthy until it breaks; then raise EngineError."""
        async for healthy in self.engine.health_changes():
            await set_ready(healthy)
        logger.error("engine unhealthy, no longer ready")
        await set_ready(False)
        # A broken engine does not recover: end the process, so that the pod restarts.
        raise EngineError("the engine broke")


@asynccontextmanager
async def application(settings: InferenceSettings) -> AsyncIterator[Application]:
    """Load the model, warm it up and yield the service. Raises StartupError."""
    steps = StepSpans()
    folder = await asyncio.to_thread(_folder, settings)
    engine = await _engine(settings, folder, steps)
    try:
        await engine.start()
    except EngineError as error:
        raise StartupError(str(error)) from error
    try:
        metrics.watch(engine)
        backlog = Backlog()
        files = await asyncio.to_thread(ModelFiles, folder)
        services = (
            InferenceService(engine, steps, backlog),
            VllmEngineService(engine, files, steps, backlog),
        )
        yield Application(engine, [service.servicer for service in services])
    finally:
        await engine.stop()


def _folder(settings: InferenceSettings) -> Path | None:
    """The model's folder. The fake model needs none, and has its text files only."""
    if settings.fake_model:
        folder = Path(settings.model).expanduser()
        return folder if folder.is_dir() else None
    try:
        return model_folder(settings.model, FILE_PATTERNS)
    except ModelNotFoundError as error:
        raise StartupError(f"INFERENCE_MODEL: {error}") from error


async def _engine(
    settings: InferenceSettings, folder: Path | None, steps: StepSpans
) -> EngineClient:
    if folder is None or settings.fake_model:
        return FakeEngine(
            settings.served_name,
            tokens_per_second=settings.fake_tokens_per_second,
            max_num_seqs=settings.max_num_seqs,
            max_num_waiting=settings.max_num_waiting,
            max_messages_per_second=settings.max_messages_per_second,
        )

    # Imported here, because the fake model needs no torch, and importing torch takes seconds. The
    # objects that an import makes stay alive, so garbage collection would waste 0.25 s.
    gc.disable()
    from inference.encoder.config import is_encoder
    from inference.engine.engine_thread import AsyncEngine
    from inference.model.loading import EngineOptions, load_engine, uses_gpu
    from inference.structured_output.compiler import CompileLimits

    gc.enable()

    try:
        if is_encoder(folder):
            return _encoder_engine(settings, folder)
    except EngineError as error:
        raise StartupError(str(error)) from error
    options = EngineOptions.from_settings(settings, folder)
    return AsyncEngine(
        lambda: load_engine(options),
        on_step=steps.record,
        traced_steps=settings.traced_steps if telemetry.exporter_configured() else 0,
        max_messages_per_second=settings.max_messages_per_second,
        on_cpu=not uses_gpu(settings.device),
        step_timeout=settings.step_timeout_seconds,
        compile_limits=CompileLimits(
            max_seconds=settings.max_constraint_seconds,
            max_bytes=settings.max_constraint_megabytes * 2**20,
        ),
    )


def _encoder_engine(settings: InferenceSettings, folder: Path) -> EngineClient:
    from inference.encoder.engine import EncoderEngine
    from inference.encoder.loading import load_encoder
    from inference.model.loading import uses_gpu

    return EncoderEngine(
        lambda: load_encoder(settings, folder),
        on_cpu=not uses_gpu(settings.device),
        step_timeout=settings.step_timeout_seconds,
    )
