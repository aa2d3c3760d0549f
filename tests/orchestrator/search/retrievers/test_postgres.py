"""Full-text search in a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import time
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from mesh.rpc.channel import call_unary
from mesh.v1 import orchestrator_pb2
from orchestrator.index.documents import PASSAGE_WORDS
from orchestrator.index.postgres import main
from orchestrator.search.retrievers.postgres import SCHEMA, PostgresRetriever
from orchestrator.search.summary import RETRIEVAL_FAILED
from tests.orchestrator.fakes import FakeInference, orchestrator
from tests.orchestrator.search.retrievers.documents import DOCUMENTS
from tests.orchestrator.search.retrievers.encoder import (
    NUM_DIMENSIONS,
    encoder_server,
    vector,
)
from tests.orchestrator.search.retrievers.postgres import needs_postgres
from tests.orchestrator.search.test_multilingual import MIN_SHARE, PASSAGES

pytestmark = [needs_postgres, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def database(postgres_url: str) -> str:
    """The URL of a database with the documents."""
    asyncio.run(fill(postgres_url))
    return postgres_url


async def fill(url: str) -> None:
    """Creates and fills the table that the documentation describes."""
    connection = await asyncpg.connect(url)
    await connection.execute(SCHEMA)
    await connection.executemany(
        "INSERT INTO documents (title, url, text, unsafe) VALUES ($1, $2, $3, $4)", DOCUMENTS
    )
    await connection.close()


@pytest.fixture
async def retriever(database: str) -> AsyncIterator[PostgresRetriever]:
    retriever = PostgresRetriever(database, "documents", "english", 30.0)
    yield retriever
    await retriever.close()


async def test_a_title_match_ranks_first(retriever: PostgresRetriever) -> None:
    """A title counts more than a text; inflected forms match; results are sorted by score."""
    found = await retriever.search("what is a FOX?", 10, False)
    assert found[0].title == "Foxes"
    assert {result.title for result in found} == {"Foxes", "Dogs", "Hunting"}
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)
    assert found[0].url == "https://x.org/foxes"


async def test_unsafe_documents_are_left_out_on_demand(retriever: PostgresRetriever) -> None:
    """Those whose column `unsafe` is true."""
    found = await retriever.search("fox", 10, True)
    assert {result.title for result in found} == {"Foxes", "Dogs"}


async def test_a_long_document_yields_its_matching_passage(retriever: PostgresRetriever) -> None:
    """Neither its beginning nor its whole text."""
    found = await retriever.search("lynx", 3, False)
    assert "The lynx is a shy cat." in found[0].text
    assert len(found[0].text.split()) < PASSAGE_WORDS + 20
    assert len(found) <= 3


@pytest.mark.parametrize(
    "query",
    ["'; DROP TABLE documents; --", '"', "!!", "a & | ! <-> b:*", "-fox or", "\\", "the", "🦊"],
)
async def test_no_query_is_parsed_as_syntax(retriever: PostgresRetriever, query: str) -> None:
    """The search succeeds, and the table still exists."""
    await retriever.search(query, 3, True)
    assert await retriever.search("fox", 1, False)


async def test_the_right_passage_is_first_in_ten_languages(database: str) -> None:
    """For 95 % of all queries: each row has the text search configuration of its language."""
    configurations = {
        "ar": "arabic", "de": "german", "es": "spanish", "fr": "french", "hi": "hindi",
        "ru": "russian",
    }  # fmt: skip
    connection = await asyncpg.connect(database)
    await connection.execute(SCHEMA.replace("documents", "multilingual"))
    await connection.executemany(
        "INSERT INTO multilingual (title, url, text, language) VALUES ('', $1, $2, $3::regconfig)",
        [
            (
                f"{each['language']}-{each['number']}",
                each["passage"],
                configurations.get(each["language"], "simple"),
            )
            for each in PASSAGES
        ],
    )
    await connection.close()
    languages = ",".join(["simple", *configurations.values()])
    retriever = PostgresRetriever(database, "multilingual", languages, 30.0)
    wrong = []
    for each in PASSAGES:
        found = await retriever.search(each["query"], 1, False)
        if not found or found[0].url != f"{each['language']}-{each['number']}":
            wrong.append(each["query"])
    decomposed = await retriever.search(unicodedata.normalize("NFD", "Nürnberg"), 1, False)
    await retriever.close()
    assert len(wrong) <= (1 - MIN_SHARE) * len(PASSAGES), wrong
    assert "Nürnberg" in decomposed[0].text


async def connect_pgvector(database: str) -> asyncpg.Connection:
    """A connection to the database with pgvector; skips the test if there is none."""
    connection = await asyncpg.connect(database)
    query = "SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"
    if not await connection.fetch(query):
        await connection.close()
        pytest.skip("needs pgvector")
    await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    return connection


async def test_vectors_of_pgvector_are_searched(database: str) -> None:
    """Nearest first, without unsafe rows on demand."""
    connection = await connect_pgvector(database)
    await connection.execute(
        "CREATE TABLE embedded AS SELECT * FROM documents;"
        "ALTER TABLE embedded ADD embedding vector(2);"
        "UPDATE embedded SET embedding = CASE title WHEN 'Hunting' THEN '[1,0]'::vector "
        "WHEN 'Dogs' THEN '[1,0.5]'::vector ELSE '[0,1]'::vector END"
    )
    await connection.close()
    retriever = PostgresRetriever(database, "embedded", "english", 30.0, "embedding")
    assert await retriever.embedding_model() == ("", 2)
    found = await retriever.search_vectors("x", [1.0, 0.0], 2, False)
    safe = await retriever.search_vectors("x", [1.0, 0.0], 1, True)
    await retriever.close()
    assert [result.title for result in found] == ["Hunting", "Dogs"]
    assert [result.title for result in safe] == ["Dogs"]


async def test_rows_without_a_vector_are_embedded(
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In batches, by title and text up to a length; a second run embeds only what is new."""
    connection = await connect_pgvector(database)
    await connection.execute(
        f"CREATE TABLE filled (title text, text text, embedding vector({NUM_DIMENSIONS}));"
        "INSERT INTO filled VALUES ('Sea', 'A vessel.'), (NULL, 'A hound.'), ('', ''),"
        "('Long', repeat('car ', 1000));"
    )
    (tmp_path / "url").write_text(f"{database}\n")
    monkeypatch.setattr("orchestrator.index.embedding.RETRY_SECONDS", 0.0)
    async with encoder_server() as server:
        command = [
            "--url-file",
            str(tmp_path / "url"),
            "--table",
            "filled",
            "--embedding-model",
            "concepts",
            "--embedding-url",
        ]
        command += [server.url, "--embedding-batch", "3", "--max-characters", "20"]
        codes = [await asyncio.to_thread(main, command)]
        await connection.execute("INSERT INTO filled VALUES ('New', 'A boat.')")
        codes.append(await asyncio.to_thread(main, command))
        await connection.execute(
            "ALTER TABLE filled ADD short vector(2); UPDATE filled SET short = '[1,2]' "
            "WHERE title <> 'Sea'"
        )
        codes.append(await asyncio.to_thread(main, [*command, "--column", "short"]))
    rows = await connection.fetch("SELECT title, embedding::text FROM filled")
    await connection.close()
    output = capsys.readouterr()
    assert codes == [0, 0, 1]
    assert output.out == "filled: 4 embedded\nfilled: 1 embedded\n"
    assert "again to continue: expected 2 dimensions, not" in output.err
    assert [request.body["input"] for request in server.requests[:3]] == [
        ["Sea\nA vessel.", "A hound.", " "],
        ["Long\n" + ("car " * 4)[:15]],
        ["New\nA boat."],
    ]
    found = {row["title"]: json.loads(row["embedding"]) for row in rows}
    assert found["Sea"] == pytest.approx(vector("Sea\nA vessel."))
    assert found["New"] == pytest.approx(vector("New\nA boat."))


async def test_searches_run_concurrently(retriever: PostgresRetriever) -> None:
    """More searches than connections, started before the pool is open."""
    found = await asyncio.gather(*(retriever.search("fox", 1, False) for _ in range(20)))
    assert all(results[0].title == "Foxes" for results in found)


async def test_database_results_are_summarised(database: str) -> None:
    """The setting selects the retriever; the search runs through the whole orchestrator."""
    async with orchestrator(
        FakeInference(), retrieval="postgres", postgres_url=database, retrieval_timeout_seconds=30
    ) as running:
        request = orchestrator_pb2.SummarizeRequest(query="fox", safe_search=True)
        whole = await call_unary(running.stub.Summarize, request)
    assert [source.title for source in whole.results.results] == ["Foxes", "Dogs"]
    assert "A fox is a small wild dog. [1]" in running.tokenizer.prompts[-1]


async def test_a_locked_table_times_out(database: str) -> None:
    """The query is cancelled in the database too."""
    blocker = await asyncpg.connect(database)
    async with orchestrator(
        FakeInference(), retrieval="postgres", postgres_url=database, retrieval_timeout_seconds=1.0
    ) as running:
        request = orchestrator_pb2.SummarizeRequest(query="fox")
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE documents IN ACCESS EXCLUSIVE MODE")
            begun = time.monotonic()
            whole = await call_unary(running.stub.Summarize, request)
            assert time.monotonic() - begun < 15
            assert whole.summary == RETRIEVAL_FAILED
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            async with asyncio.timeout(15):
                while await blocker.fetchval(waiting):
                    await asyncio.sleep(0.05)
    await blocker.close()


async def test_an_unreachable_database_is_reported_in_the_summary() -> None:
    """The service starts without it; the summary says that the search failed."""
    url = "postgresql://weir@127.0.0.1:1/none"
    async with orchestrator(FakeInference(), retrieval="postgres", postgres_url=url) as running:
        request = orchestrator_pb2.SummarizeRequest(query="fox")
        whole = await call_unary(running.stub.Summarize, request)
    assert whole.summary == RETRIEVAL_FAILED
