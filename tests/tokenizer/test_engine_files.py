"""A tokenizer whose files come from an engine: archives that are damaged, hostile or late."""

from __future__ import annotations

import asyncio
import hashlib
import io
import zipfile
from collections.abc import AsyncIterator, Mapping
from random import Random
from typing import Any

import pytest
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2_grpc

from mesh.hub import vllm_tokenizer
from mesh.hub.vllm_tokenizer import ArchiveError, read_archive
from mesh.process.lifecycle import StartupError
from mesh.rpc.server import Servicer
from mesh.v1 import tokenizer_pb2
from tests.helpers import Served, serve
from tests.tokenizer.conftest import train_tokenizer
from tokenizer import engine_files
from tokenizer.application import application
from tokenizer.engine_files import read_engine_files
from tokenizer.settings import TokenizerSettings


def archive_of(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive, with a compression method of `zipfile`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def sha256_of(archive: bytes) -> str:
    """Its hexadecimal digest."""
    return hashlib.sha256(archive).hexdigest()


class Engine(vllm_engine_pb2_grpc.VllmEngineServicer):  # type: ignore[misc]
    """Sends an archive in parts, the digest with the last one."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.archive = archive_of(files)
        self.sha256 = sha256_of(self.archive)

    async def GetTokenizer(
        self, request: Any, context: Any
    ) -> AsyncIterator[common_pb2.GetTokenizerChunk]:
        """Parts of 1,000 bytes."""
        for start in range(0, len(self.archive), 1000):
            part = self.archive[start : start + 1000]
            is_last = start + len(part) == len(self.archive)
            yield common_pb2.GetTokenizerChunk(data=part, sha256=self.sha256 if is_last else "")


def serving(engine: Engine) -> Any:
    """Serves an engine."""
    register = vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server
    return serve(Servicer("vllm.grpc.engine.VllmEngine", register, engine))


def target(served: Served) -> str:
    """The engine's address as a model."""
    return f"vllm+grpc://{served.address}"


FILES = {
    "tokenizer.json": train_tokenizer().to_str().encode(),
    "tokenizer_config.json": b'{"chat_template": "{{ messages[0].content }}!"}',
    "config.json": b"{}",
    "vocab.json": b"{}",
}


async def test_the_service_has_the_engines_tokenizer() -> None:
    """Texts are encoded and templates rendered; files without use are left out."""
    async with serving(Engine(FILES)) as served:
        files = await read_engine_files(target(served))
        assert sorted(files.contents) == ["tokenizer.json", "tokenizer_config.json"]
        async with application(TokenizerSettings(model=target(served))) as service:
            request = tokenizer_pb2.EncodeRequest(text="hello")
            chat = tokenizer_pb2.EncodeRequest()
            chat.chat.messages.add(role="user", content="hello")
            context: Any = None
            text_ids = (await service.Encode(request, context)).token_ids
            chat_ids = (await service.Encode(chat, context)).token_ids
            mark = train_tokenizer().encode("!", add_special_tokens=False).ids
            assert list(chat_ids) == [*text_ids, *mark]


async def test_the_service_waits_for_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is loading does not serve yet; one that never does is an error."""
    monkeypatch.setattr(engine_files, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(engine_files, "WAIT_SECONDS", 0.2)
    async with serving(Engine(FILES)) as served:
        served.server.interceptor.draining = True
        with pytest.raises(StartupError, match=r"is not ready after 0\.2 s"):
            await read_engine_files(target(served))
        monkeypatch.setattr(engine_files, "WAIT_SECONDS", 20.0)
        reading = asyncio.create_task(read_engine_files(target(served)))
        await asyncio.sleep(0)
        served.server.interceptor.draining = False
        assert (await reading).contents["tokenizer.json"] == FILES["tokenizer.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, "its SHA-256 is"),
        ({"sha256": ""}, "given none"),
        ({"archive": archive_of({"config.json": b"{}"})}, "has no tokenizer.json"),
        ({"archive": b"not a zip"}, "File is not a zip file"),
    ],
)
async def test_an_unusable_archive_is_an_error(change: dict[str, Any], message: str) -> None:
    """The process ends with a message that names the engine."""
    engine = Engine(FILES)
    if "archive" in change:
        engine.archive, engine.sha256 = change["archive"], sha256_of(change["archive"])
    engine.sha256 = change.get("sha256", engine.sha256)
    async with serving(engine) as served:
        with pytest.raises(StartupError, match=message) as caught:
            await read_engine_files(target(served))
        assert served.address in str(caught.value)


async def test_a_large_archive_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The download ends at the limit."""
    monkeypatch.setattr(vllm_tokenizer, "MAX_ARCHIVE_BYTES", 1500)
    async with serving(Engine(FILES)) as served:
        with pytest.raises(StartupError, match="more than 1500 bytes"):
            await read_engine_files(target(served))


def test_a_file_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever size the archive claims."""
    monkeypatch.setattr(vllm_tokenizer, "MAX_FILE_BYTES", 1000)
    archive = archive_of({"tokenizer.json": b"0" * 1_000_000})
    assert len(archive) < 2000
    with pytest.raises(ArchiveError, match=r"tokenizer\.json has more than 1000 bytes"):
        read_archive(archive, sha256_of(archive))


def test_names_outside_the_list_are_ignored() -> None:
    """Nothing is written, and only known names are read."""
    files = {"../tokenizer.json": b"1", "/etc/tokenizer.json": b"2", "tokenizer.json": b"3"}
    archive = archive_of(files)
    assert read_archive(archive, sha256_of(archive)) == {"tokenizer.json": b"3"}


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_archive_is_an_error_and_nothing_else(method: int) -> None:
    """The digest is that of the damaged bytes."""
    whole = archive_of({"tokenizer.json": b"0123456789" * 20, "config.json": b"{}"}, method)
    num_errors = 0
    for seed in range(300):
        random = Random(seed)
        archive = bytearray(whole)
        for _ in range(random.randint(1, 4)):
            archive[random.randrange(len(archive))] = random.randrange(256)
        try:
            contents = read_archive(bytes(archive), sha256_of(bytes(archive)))
        except ArchiveError:
            num_errors += 1
        else:
            assert set(contents) <= set(vllm_tokenizer.FILES)
    assert num_errors > 100
