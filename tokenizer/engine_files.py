"""Reads the files of a tokenizer from a vLLM engine, instead of a folder."""

from __future__ import annotations

import asyncio
import logging

from mesh.errors import ErrorKind, MeshError
from mesh.hub.vllm_tokenizer import fetch_tokenizer
from mesh.process.lifecycle import StartupError
from mesh.rpc.channel import open_channel
from mesh.rpc.targets import with_default_port
from tokenizer.files import FILE_PATTERNS, TOKENIZER_FILE, TokenizerFiles, files_sha256

logger = logging.getLogger("tokenizer")

SCHEME = "vllm+grpc://"
PORT = 50051

WAIT_SECONDS = 1800.0
"""How long an engine may take to load its model before the tokenizer gives up."""

RETRY_SECONDS = 1.0

_NOT_READY = (ErrorKind.UNAVAILABLE, ErrorKind.DEADLINE)


async def read_engine_files(model: str) -> TokenizerFiles:
    """The files of the engine at `vllm+grpc://HOST:PORT`; waits until it serves.

    Raises StartupError if it serves none, or not within `WAIT_SECONDS`.
    """
    address = with_default_port(model.removeprefix(SCHEME), PORT)
    channel = open_channel(address)
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                try:
                    files = await fetch_tokenizer(channel)
                    break
                except MeshError as error:
                    if error.kind not in _NOT_READY:
                        raise
                    logger.info("engine not ready", extra={"address": address})
                await asyncio.sleep(RETRY_SECONDS)
    except TimeoutError:
        raise StartupError(f"the engine {model} is not ready after {WAIT_SECONDS:g} s") from None
    except MeshError as error:
        raise StartupError(f"no tokenizer from the engine {model}: {error}") from error
    finally:
        await channel.close()
    contents = {name: files[name] for name in sorted(files) if name in FILE_PATTERNS}
    if TOKENIZER_FILE not in contents:
        raise StartupError(f"the engine {model} has no {TOKENIZER_FILE}; set the model's folder")
    return TokenizerFiles(contents, files_sha256(contents))
