"""Fills a column of pgvector: python -m orchestrator.index.postgres --embedding-model NAME

Embeds the rows whose vector is null, in batches, each stored at once: run it again to continue an
interrupted run, and after rows were added. Set the vector to null if the text of a row changes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import asyncpg
from tqdm import tqdm

from orchestrator.index.build import add_embedding_arguments, open_embedder
from orchestrator.index.embedding import embed_batch
from orchestrator.index.vectors import embedded_text
from orchestrator.search.embedders import Embedder
from orchestrator.search.retrievers.postgres import quoted

MAX_CHARACTERS = 1000
"""Default length up to which a row is embedded: most encoders read 256 tokens or more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 1 after a failure."""
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.index.postgres",
        description="Embeds the rows of a PostgreSQL table that have no vector.",
    )
    parser.add_argument(
        "--url-file",
        metavar="FILE",
        type=Path,
        required=True,
        help="file with the database's URL, postgresql://USER:PASSWORD@HOST/NAME; the user needs "
        "SELECT and UPDATE",
    )
    parser.add_argument(
        "--table", metavar="NAME", default="documents", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--column",
        metavar="NAME",
        default="embedding",
        help="column of pgvector's type vector (default: %(default)s)",
    )
    parser.add_argument(
        "--max-characters",
        metavar="N",
        type=int,
        choices=range(1, 1_000_001),
        default=MAX_CHARACTERS,
        help="characters of a row, title included, that are embedded (default: %(default)s)",
    )
    add_embedding_arguments(parser)
    arguments = parser.parse_args(argv)
    if not arguments.embedding_model:
        parser.error("--embedding-model is required")
    try:
        num_embedded = asyncio.run(_fill(arguments))
    except Exception as error:
        print(
            f"{arguments.table} could not be embedded; run the same command again to continue: "
            f"{error or type(error).__name__}",
            file=sys.stderr,
        )
        return 1
    print(f"{arguments.table}: {num_embedded} embedded")
    return 0


async def _fill(arguments: argparse.Namespace) -> int:
    url = arguments.url_file.read_text().strip()
    embedder = open_embedder(arguments)
    try:
        table = EmbeddedTable(url, arguments.table, arguments.column, arguments.max_characters)
        return await table.fill(embedder, arguments.embedding_batch)
    finally:
        await embedder.close()


class EmbeddedTable:
    """A table with the columns `title` and `text`, and one of pgvector's type `vector`."""

    def __init__(self, url: str, table: str, column: str, max_characters: int) -> None:
        """Opens no connection. `max_characters` of each row are embedded."""
        self._url = url
        self._table, self._column = quoted(table), quoted(column)
        self._max_characters = max_characters

    async def fill(self, embedder: Embedder, batch_size: int) -> int:
        """Embeds the rows without a vector; returns their number. May raise any exception."""
        # A cursor reads all rows in one scan, while a second connection stores the batches.
        reader = await asyncpg.connect(self._url)
        try:
            writer = await asyncpg.connect(self._url)
            try:
                return await self._fill(reader, writer, embedder, batch_size)
            finally:
                await writer.close()
        finally:
            await reader.close()

    async def _fill(
        self,
        reader: asyncpg.Connection,
        writer: asyncpg.Connection,
        embedder: Embedder,
        batch_size: int,
    ) -> int:
        missing = f"FROM {self._table} WHERE {self._column} IS NULL"
        # The row may change meanwhile; its vector is then left for the next run.
        update = (
            f"UPDATE {self._table} SET {self._column} = $1::text::vector WHERE ctid = $2 "
            "AND title IS NOT DISTINCT FROM $3 AND text IS NOT DISTINCT FROM $4"
        )
        num_done = 0
        async with reader.transaction(readonly=True):
            total = await reader.fetchval(f"SELECT count(*) {missing}")
            cursor = await reader.cursor(f"SELECT ctid, title, text {missing}")
            with tqdm(total=total, desc="embedding", unit="row", file=sys.stderr) as progress:
                while rows := await cursor.fetch(batch_size):
                    texts = [self._embedded_text(row["title"], row["text"]) for row in rows]
                    vectors = await embed_batch(texts, embedder)
                    stored = [
                        (f"[{','.join(map(repr, vector))}]", *row)
                        for row, vector in zip(rows, vectors, strict=True)
                    ]
                    async with writer.transaction():
                        await writer.executemany(update, stored)
                    num_done += len(rows)
                    progress.update(len(rows))
        return num_done

    def _embedded_text(self, title: str | None, text: str | None) -> str:
        # An encoder refuses empty text.
        return embedded_text(title or "", "", text or "")[: self._max_characters] or " "


if __name__ == "__main__":
    sys.exit(main())
