"""Constructs the service from its settings."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mesh.hub.vocabulary import VocabularyError, vocabulary_sha256
from mesh.process.lifecycle import StartupError
from tokenizer import metrics
from tokenizer.engine_files import SCHEME, read_engine_files
from tokenizer.executor import BoundedExecutor
from tokenizer.files import TOKENIZER_FILE, TokenizerFiles, read_files
from tokenizer.rendering.requests import RenderLimits
from tokenizer.rendering.workers import RenderWorkers
from tokenizer.service import TokenizerService
from tokenizer.settings import TokenizerSettings
from tokenizer.tokenizer import Tokenizer

logger = logging.getLogger("tokenizer")

MAX_RENDERED_RATIO = 4
"""Maximum length of a rendered prompt relative to the input limit; indented JSON grows most."""


@asynccontextmanager
async def application(settings: TokenizerSettings) -> AsyncIterator[TokenizerService]:
    """Loads the tokenizer and yields the service; closes it on exit. Raises StartupError."""
    started = time.monotonic()
    if settings.model.startswith(SCHEME):
        files = await read_engine_files(settings.model)
    else:
        files = await asyncio.to_thread(read_files, settings.model)
    vocabulary = await asyncio.to_thread(_vocabulary_sha256, settings.model, files)
    tokenizer = await asyncio.to_thread(Tokenizer, settings.model, files)
    limits = render_limits(settings)
    workers = await asyncio.to_thread(RenderWorkers, tokenizer.format, limits)
    logger.info(
        "tokenizer loaded",
        extra={
            "model": settings.model,
            "tokenizer_sha256": files.sha256,
            "vocabulary_sha256": vocabulary,
            "duration_seconds": time.monotonic() - started,
        },
    )
    executor = BoundedExecutor(settings.num_workers, settings.max_waiting)
    metrics.export_pending(lambda: executor.num_pending)
    try:
        yield TokenizerService(settings, files, tokenizer, workers, executor)
    finally:
        executor.close()
        workers.close()


def render_limits(settings: TokenizerSettings) -> RenderLimits:
    """The limits of a worker process."""
    return RenderLimits(
        cpu_seconds=settings.template_timeout_seconds,
        memory_bytes=settings.template_memory_mib << 20,
        max_characters=MAX_RENDERED_RATIO * settings.max_input_characters,
    )


def _vocabulary_sha256(model: str, files: TokenizerFiles) -> str:
    """The digest that engines are compared by. Raises StartupError if the file is invalid."""
    try:
        return vocabulary_sha256(files.contents[TOKENIZER_FILE])
    except VocabularyError as error:
        raise StartupError(f"{TOKENIZER_FILE} of model {model!r} is invalid: {error}") from error
