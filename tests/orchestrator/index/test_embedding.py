"""Embedding the passages of an index: in batches, resumed, and only what changed."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.index import embedding
from orchestrator.index.build import main
from orchestrator.index.embedding import embed_passages
from orchestrator.index.vectors import EmbeddingModel, quantize
from orchestrator.index.writer import IndexBuildError, IndexWriter
from orchestrator.search.embedders import HttpEmbedder
from orchestrator.search.http_json import HttpJsonError
from tests.orchestrator.search.retrievers.encoder import (
    NUM_DIMENSIONS,
    FakeEncoder,
    encoder_server,
)
from tests.orchestrator.search.retrievers.fake_engine import fake_engine

NUM_DOCUMENTS = 7


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once."""
    monkeypatch.setattr(embedding, "RETRY_SECONDS", 0.0)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A folder of documents."""
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(NUM_DOCUMENTS):
        (folder / f"{number}.txt").write_text(f"Title {number}\n\nThe car number {number}.")
    return folder


def index(docs: Path) -> Path:
    """Builds or updates the index by words."""
    path = docs.parent / "index"
    assert main([str(docs), "--out", str(path)]) == 0
    return path


def embed(path: Path, encoder: FakeEncoder, batch_size: int = 3) -> int:
    """Embeds what has no vector."""
    with closing(IndexWriter(path)) as writer:
        return asyncio.run(embed_passages(writer.vectors, encoder, batch_size))


def num_missing(path: Path) -> int:
    """Number of passages without a vector."""
    with closing(IndexWriter(path)) as writer:
        return len(writer.vectors.unembedded())


def test_only_changed_passages_are_embedded(docs: Path) -> None:
    """By the content of each passage: a renamed file and an unchanged paragraph keep theirs."""
    encoder = FakeEncoder()
    assert embed(index(docs), encoder) == NUM_DOCUMENTS
    assert embed(index(docs), encoder) == 0
    (docs / "0.txt").rename(docs / "renamed.txt")
    (docs / "1.txt").write_text("Title 1\n\nThe dog is new.")
    (docs / "2.txt").unlink()
    encoder.texts.clear()
    assert embed(index(docs), encoder) == 1
    assert encoder.texts == ["Title 1\nThe dog is new."]
    assert num_missing(docs.parent / "index") == 0


def test_an_interrupted_run_is_resumed(docs: Path) -> None:
    """Each batch is stored at once; the message says how to continue."""
    encoder = FakeEncoder()

    async def fail(texts: object) -> object:
        raise ConnectionError("connection refused")

    path = index(docs)
    real = encoder.embed

    async def fail_later(texts: list[str]) -> object:
        return await (fail(texts) if len(encoder.texts) >= 3 else real(texts))

    encoder.embed = fail_later  # type: ignore[method-assign, assignment]
    with pytest.raises(IndexBuildError, match=r"3 of 7 .* again to continue: connection refused"):
        embed(path, encoder)
    assert num_missing(path) == NUM_DOCUMENTS - 3
    assert embed(path, FakeEncoder()) == NUM_DOCUMENTS - 3


def test_another_encoder_embeds_everything(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Vectors of two encoders are not comparable."""
    path = index(docs)
    embed(path, FakeEncoder("first"))
    assert embed(path, FakeEncoder("second")) == NUM_DOCUMENTS
    assert "vectors of first are replaced by those of second" in capsys.readouterr().err
    with closing(IndexWriter(path)) as writer:
        assert writer.vectors.model == EmbeddingModel("second", NUM_DIMENSIONS)


def test_the_command_embeds_with_an_openai_compatible_server(
    docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batches of the given size with the model and the key; vectors are matched by their index."""
    key, path = docs.parent / "key", docs.parent / "index"
    key.write_text("secret\n")

    async def run() -> list[tuple[str, str, int]]:
        async with encoder_server() as server:
            arguments = [str(docs), "--out", str(path), "--embedding-url", server.url]
            arguments += ["--embedding-model", "concepts", "--embedding-batch", "4"]
            arguments += ["--embedding-key-file", str(key)]
            assert await asyncio.to_thread(main, arguments) == 0
            return [
                (each.path, each.headers["authorization"], len(each.body["input"]))
                for each in server.requests
            ]

    assert asyncio.run(run()) == [
        ("/v1/embeddings", "Bearer secret", 4),
        ("/v1/embeddings", "Bearer secret", 3),
    ]
    assert "7 indexed, 0 unchanged, 0 removed, 0 skipped, 7 embedded" in capsys.readouterr().out
    assert num_missing(path) == 0


def test_an_unknown_encoder_is_named_with_those_that_are_served(
    docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At once, since a further try would fail too."""

    async def run(model: str) -> int:
        async with encoder_server() as server:
            arguments = [str(docs), "--out", str(docs.parent / "index")]
            arguments += ["--embedding-url", server.url, "--embedding-model", model]
            assert await asyncio.to_thread(main, arguments) == 1
            return len(server.requests)

    assert asyncio.run(run("conceps")) == 2
    printed = capsys.readouterr().err
    assert "the server has no encoder conceps; it serves concepts\n" in printed
    assert "trying again" not in printed


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "input is\n too long"}}, "HTTP 413: input is too long"),
        ({"error": "no room", "error_type": "Validation"}, "HTTP 413: no room"),
        ({"detail": "no input"}, "HTTP 413: no input"),
        ({"detail": [{"loc": []}]}, "HTTP 413"),
        (b"<html>", "HTTP 413"),
    ],
)
async def test_the_reason_of_a_server_is_reported(body: object, message: str) -> None:
    """OpenAI's, TEI's and FastAPI's errors; at most 300 characters."""
    async with fake_engine(lambda _: body, status=413) as server:
        embedder = HttpEmbedder(server.url, "m", "", 5.0)
        with pytest.raises(HttpJsonError, match=f"{message}$") as caught:
            await embedder.embed(["x"])
        await embedder.close()
    assert caught.value.status == 413


def test_an_unreachable_encoder_leaves_the_index_usable(
    docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, and the search by words is complete."""
    path = docs.parent / "index"
    arguments = [str(docs), "--out", str(path), "--embedding-model", "concepts"]
    assert main([*arguments, "--embedding-url", "http://127.0.0.1:1/v1"]) == 1
    assert "0 of 7 passages were embedded" in capsys.readouterr().err
    assert num_missing(path) == NUM_DOCUMENTS


def test_vectors_are_rounded_without_their_length() -> None:
    """The largest number becomes 127; signs are bits, the lowest first."""
    rounded = quantize([0.5, -0.25, 0.0, 0.25, 0, 0, 0, 0, 0.5])
    assert rounded.coarse == bytes([0b00001001, 0b00000001])
    assert rounded.fine[:4] == bytes([127, 256 - 64, 0, 64])
    assert len(rounded.fine) == 16
