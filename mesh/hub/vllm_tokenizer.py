"""A tokenizer's files from a vLLM engine: a zip archive in chunks, by `VllmEngine.GetTokenizer`."""

from __future__ import annotations

import asyncio
import hashlib
import io
import zipfile
from collections.abc import Mapping

import grpc.aio
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2_grpc

from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import open_stream

FILES = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""The files that are read; all others in the archive are ignored."""

MAX_ARCHIVE_BYTES = 128 << 20
"""Limit of an archive. The largest vocabularies take about 40 MiB."""

MAX_FILE_BYTES = 128 << 20
"""Limit of one file, unpacked."""

FETCH_SECONDS = 60.0


class ArchiveError(ValueError):
    """The archive is damaged or exceeds a limit."""


async def fetch_tokenizer(channel: grpc.aio.Channel) -> Mapping[str, bytes]:
    """The `FILES` that the engine has, by name. Raises MeshError: INTERNAL for a bad archive."""
    stub = vllm_engine_pb2_grpc.VllmEngineStub(channel)
    archive, sha256 = bytearray(), ""
    call = open_stream(stub.GetTokenizer, common_pb2.GetTokenizerRequest(), timeout=FETCH_SECONDS)
    try:
        async with call as parts:
            async for part in parts:
                if len(archive) + len(part.data) > MAX_ARCHIVE_BYTES:
                    raise ArchiveError(f"it has more than {MAX_ARCHIVE_BYTES} bytes")
                archive += part.data
                sha256 = part.sha256 or sha256
        return await asyncio.to_thread(read_archive, bytes(archive), sha256)
    except ArchiveError as error:
        message = f"the engine's tokenizer archive cannot be used: {error}"
        raise MeshError(ErrorKind.INTERNAL, message) from error


def read_archive(archive: bytes, sha256: str) -> Mapping[str, bytes]:
    """The `FILES` in a zip archive, in memory. Raises ArchiveError if its digest is another one.

    Nothing is written to a disk, so names and links in the archive have no effect.
    """
    digest = hashlib.sha256(archive).hexdigest()
    if digest != sha256.lower():
        raise ArchiveError(f"its SHA-256 is {digest}, given {sha256 or 'none'}")
    contents: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            for name in set(FILES) & set(opened.namelist()):
                contents[name] = _read(opened, name)
    except ArchiveError:
        raise
    except Exception as error:  # `zipfile` and its decompressors raise about ten kinds
        raise ArchiveError(str(error)) from error
    return contents


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as file:
        content = file.read(MAX_FILE_BYTES + 1)  # not the size that the archive claims
    if len(content) > MAX_FILE_BYTES:
        raise ArchiveError(f"{name} has more than {MAX_FILE_BYTES} bytes")
    return content
