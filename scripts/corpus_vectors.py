"""Gives the passages of the local run's search index the vectors that they do not have yet."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

from orchestrator.index.database import sqlite3
from orchestrator.index.vectors import VectorTable

BATCH = 64
"""Passages in one request."""

TIMEOUT_SECONDS = 120.0
"""For one batch."""


class EmbeddingFailed(Exception):
    """The passages could not be embedded; the message has the reason."""


def embed_index(index: Path, encoder: str, url: str) -> int:
    """Embeds passages without a vector by OpenAI's API at `url`; returns their number.

    Vectors of another encoder are replaced. Raises EmbeddingFailed.
    """
    return asyncio.run(_embed(index, encoder, url))


def is_embedded(index: Path, encoder: str) -> bool:
    """Whether all passages have a vector of `encoder`."""
    with closing(sqlite3.connect(index)) as connection:
        table = VectorTable(connection)
        return table.model is not None and table.model.name == encoder and not table.unembedded()


async def _embed(index: Path, encoder: str, url: str) -> int:
    # Imported here, since a second start, which embeds nothing, is faster without.
    from orchestrator.index.embedding import embed_passages
    from orchestrator.index.writer import IndexBuildError, IndexWriter
    from orchestrator.search.embedders import HttpEmbedder

    embedder = HttpEmbedder(url, encoder, "", TIMEOUT_SECONDS)
    try:
        with closing(IndexWriter(index)) as writer:
            return await embed_passages(writer.vectors, embedder, BATCH)
    except (IndexBuildError, OSError, sqlite3.Error) as error:
        raise EmbeddingFailed(str(error)) from error
    finally:
        await embedder.close()
