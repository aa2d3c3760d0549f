"""Full-text search in a real PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from mesh.rpc.channel import call_unary
from mesh.v1 import orchestrator_pb2
from orchestrator.index.documents import PASSAGE_WORDS
from orchestrator.search.retrievers.postgres import SCHEMA, PostgresRetriever
from orchestrator.search.summary import NOTHING_SEARCHED
from tests.orchestrator.fakes import FakeInference, orchestrator
from tests.orchestrator.search.retrievers.documents import DOCUMENTS
from tests.orchestrator.search.retrievers.postgres import needs_postgres, postgres

pytestmark = [needs_postgres, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The URL of a database with the documents."""
    with postgres() as url:
        asyncio.run(fill(url))
        yield url


async def fill(url: str) -> None:
    """Makes the table as the documentation does."""
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


async def test_the_document_about_it_comes_first(retriever: PostgresRetriever) -> None:
    """A title outweighs a text; other forms of the word match; scores fall."""
    found = await retriever.search("what is a FOX?", 10, False)
    assert found[0].title == "Foxes"
    assert {result.title for result in found} == {"Foxes", "Dogs", "Hunting"}
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)
    assert found[0].url == "https://x.org/foxes"


async def test_unsafe_documents_are_left_out_on_demand(retriever: PostgresRetriever) -> None:
    """What the column marks."""
    found = await retriever.search("fox", 10, True)
    assert {result.title for result in found} == {"Foxes", "Dogs"}


async def test_a_long_document_gives_the_passage_that_matches(retriever: PostgresRetriever) -> None:
    """Not its beginning, and not the whole of it."""
    found = await retriever.search("lynx", 3, False)
    assert "The lynx is a shy cat." in found[0].text
    assert len(found[0].text.split()) < PASSAGE_WORDS + 20
    assert len(found) <= 3


@pytest.mark.parametrize(
    "query",
    ["'; DROP TABLE documents; --", '"', "!!", "a & | ! <-> b:*", "-fox or", "\\", "the", "🦊"],
)
async def test_nothing_that_is_typed_is_syntax(retriever: PostgresRetriever, query: str) -> None:
    """The search answers, and the table is still there."""
    await retriever.search(query, 3, True)
    assert await retriever.search("fox", 1, False)


async def test_searches_run_side_by_side(retriever: PostgresRetriever) -> None:
    """From the first moment on, more of them than there are connections."""
    found = await asyncio.gather(*(retriever.search("fox", 1, False) for _ in range(20)))
    assert all(results[0].title == "Foxes" for results in found)


async def test_a_search_in_the_database_is_summarised(database: str) -> None:
    """With the setting, end to end through the orchestrator."""
    async with orchestrator(
        FakeInference(), retrieval="postgres", postgres_url=database, retrieval_timeout_seconds=30
    ) as running:
        asked = orchestrator_pb2.SummarizeRequest(query="fox", safe_search=True)
        whole = await call_unary(running.stub.Summarize, asked)
    assert [source.title for source in whole.results.results] == ["Foxes", "Dogs"]
    assert "A fox is a small wild dog. [1]" in running.tokenizer.prompts[-1]


async def test_a_locked_table_costs_the_limit_and_no_more(database: str) -> None:
    """The query is given up in the database too, and the next one is answered."""
    blocker = await asyncpg.connect(database)
    async with orchestrator(
        FakeInference(), retrieval="postgres", postgres_url=database, retrieval_timeout_seconds=1.0
    ) as running:
        asked = orchestrator_pb2.SummarizeRequest(query="fox")
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE documents IN ACCESS EXCLUSIVE MODE")
            begun = time.monotonic()
            whole = await call_unary(running.stub.Summarize, asked)
            assert time.monotonic() - begun < 15
            assert whole.summary == NOTHING_SEARCHED
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            async with asyncio.timeout(15):
                while await blocker.fetchval(waiting):
                    await asyncio.sleep(0.05)
    await blocker.close()


async def test_a_database_that_is_not_there_is_told() -> None:
    """The service starts without it, and says that nothing could be searched."""
    url = "postgresql://weir@127.0.0.1:1/none"
    async with orchestrator(FakeInference(), retrieval="postgres", postgres_url=url) as running:
        asked = orchestrator_pb2.SummarizeRequest(query="fox")
        whole = await call_unary(running.stub.Summarize, asked)
    assert whole.summary == NOTHING_SEARCHED
