"""Embeds the passages of an index: in batches, each stored at once, and only what has no vector."""

from __future__ import annotations

import asyncio
import sys

from tqdm import tqdm

from orchestrator.index.vectors import EmbeddingModel, VectorTable
from orchestrator.index.writer import IndexBuildError
from orchestrator.search.embedders import Embedder, UnknownEncoder

MAX_TRIES = 3
RETRY_SECONDS = 1.0
"""Time before the second try of a batch; the third waits twice as long."""


async def embed_passages(table: VectorTable, embedder: Embedder, batch_size: int) -> int:
    """Embeds all passages without a vector of `embedder`; returns their number.

    Vectors of another encoder are replaced. An interrupted run continues with the next one.
    Raises IndexBuildError.
    """
    if table.model is not None and table.model.name != embedder.model:
        tqdm.write(
            f"vectors of {table.model.name} are replaced by those of {embedder.model}",
            file=sys.stderr,
        )
        table.clear()
    missing = table.unembedded()
    # Texts of similar length share a batch, so that an encoder pads few of them.
    missing.sort(key=lambda passage: len(passage.text))
    num_done = 0
    with tqdm(total=len(missing), desc="embedding", unit="passage", file=sys.stderr) as progress:
        for begin in range(0, len(missing), batch_size):
            batch = missing[begin : begin + batch_size]
            try:
                vectors = await embed_batch([passage.text for passage in batch], embedder)
                model = EmbeddingModel(embedder.model, len(vectors[0]))
                if table.model is not None and table.model != model:
                    raise IndexBuildError(
                        f"{model.name} returned {model.dimensions} dimensions, the index has "
                        f"{table.model.dimensions}; delete the index to build it anew"
                    )
                table.use(model)
                table.store(batch, vectors)
            except Exception as error:
                raise IndexBuildError(
                    f"{num_done} of {len(missing)} passages were embedded; run the same command "
                    f"again to continue: {error or type(error).__name__}"
                ) from error
            num_done += len(batch)
            progress.update(len(batch))
    return num_done


async def embed_batch(texts: list[str], embedder: Embedder) -> list[list[float]]:
    """The vectors of `texts`, after at most `MAX_TRIES` tries. May raise any exception."""
    for attempt in range(1, MAX_TRIES):
        try:
            return [list(vector) for vector in await embedder.embed(texts)]
        except UnknownEncoder:
            raise  # it is not served a second later either
        except Exception as error:
            tqdm.write(f"embedding failed, trying again: {error}", file=sys.stderr)
            await asyncio.sleep(RETRY_SECONDS * attempt)
    return [list(vector) for vector in await embedder.embed(texts)]
