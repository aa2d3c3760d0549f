"""Measures search quality and time: words, vectors and both fused, over SQLite and PostgreSQL.

    python -m benchmarks.retrieval --encoder FOLDER --wordnet FOLDER [--out FILE]
    python -m benchmarks.retrieval --wordnet FOLDER --encoder FOLDER --passages 100000

The documents are this machine's manual pages. A query is a page's NAME line without its name, and
the same paraphrased with WordNet; the answer is the page. FOLDER of the encoder has a BERT model
in safetensors, such as all-MiniLM-L6-v2; that of WordNet is /usr/share/wordnet of Debian's package
wordnet-base. PostgreSQL is measured if it is installed, its vectors if pgvector is. Beside them:
bm25s on whole pages, and the exact cosine of the unrounded vectors.

`--passages` measures the time alone, in an index of this size: the words of manual pages, with
vectors that are mixed from those of some passages. Its `recall@100` is the share of the hundred
passages with the most similar vectors that the search by vectors finds.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

import asyncpg
import bm25s
import numpy
import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks.retrieval_sets.manual_pages import ManualPage, manual_pages, unrendered_pages
from benchmarks.retrieval_sets.thesaurus import Thesaurus, paraphrase
from orchestrator.index.build import main as build_index
from orchestrator.index.embedding import embed_passages
from orchestrator.index.vectors import EmbeddingModel, embedded_text
from orchestrator.index.writer import IndexWriter
from orchestrator.search.retrieval import SearchResult
from orchestrator.search.retrievers.hybrid import HybridRetriever, VectorStore
from orchestrator.search.retrievers.postgres import SCHEMA, PostgresRetriever
from orchestrator.search.retrievers.sqlite_index import IndexRetriever
from tests.orchestrator.search.retrievers.postgres import BIN, postgres

LIMIT = 100
"""Passages of each search; several may be of one page."""

BATCH = 64
MAX_TOKENS = 256
"""Tokens of a text that the encoder reads."""

NUM_MIXED = 500
"""Passages of whose vectors those of a large index are mixed."""

NOISE = 0.3
"""Length of the noise that is added to a mixed vector."""

Find = Callable[[str], Awaitable[Sequence[str]]]
"""A search: from a query to the names of pages, best first, each once."""


class Encoder:
    """A sentence encoder: the mean of the last hidden states, of length 1, in bfloat16."""

    def __init__(self, folder: Path, threads: int, cache: Path | None) -> None:
        """`cache` is a folder for vectors, which a second run reads instead of encoding again."""
        torch.set_num_threads(threads)
        self._cache = cache
        self.model = folder.name
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._network = AutoModel.from_pretrained(folder).eval()
        self._known: dict[str, list[float]] = {}

    def encode(self, texts: Sequence[str]) -> list[list[float]]:
        """The vectors of `texts`; each text is encoded once."""
        missing = [text for text in dict.fromkeys(texts) if not self._knows(text)]
        for begin in range(0, len(missing), BATCH):
            batch = missing[begin : begin + BATCH]
            for text, vector in zip(batch, self._encode(batch), strict=True):
                self._known[text] = vector
                if file := self._file(text):
                    numpy.save(file, numpy.array(vector, dtype=numpy.float32))
        return [self._known[text] for text in texts]

    def _knows(self, text: str) -> bool:
        file = self._file(text)
        if text not in self._known and file and file.exists():
            self._known[text] = numpy.load(file).tolist()
        return text in self._known

    def _file(self, text: str) -> Path | None:
        if self._cache is None:
            return None
        digest = hashlib.sha256(f"{self.model}\n{text}".encode()).hexdigest()
        return self._cache / f"{digest}.npy"

    def _encode(self, texts: Sequence[str]) -> list[list[float]]:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            inputs = self._tokenizer(
                list(texts), padding=True, truncation=True, max_length=MAX_TOKENS,
                return_tensors="pt",
            )  # fmt: skip
            states = self._network(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1)
            means = (states.float() * mask).sum(1) / mask.sum(1)
            vectors: list[list[float]] = torch.nn.functional.normalize(means).tolist()
            return vectors

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """As an `Embedder`."""
        return self.encode(texts)

    async def close(self) -> None:
        """Does nothing."""


def pages_of(results: Sequence[SearchResult]) -> list[str]:
    """The pages of passages, each once."""
    return list(dict.fromkeys(unquote(result.url).removesuffix(".txt") for result in results))


def searches(name: str, store: VectorStore, encoder: Encoder | None) -> dict[str, Find]:
    """The searches of one store: by words, by vectors, and fused."""

    async def by_words(query: str) -> Sequence[str]:
        return pages_of(await store.search(query, LIMIT, False))

    async def by_vectors(query: str) -> Sequence[str]:
        assert encoder is not None
        [vector] = await encoder.embed([query])
        return pages_of(await store.search_vectors(query, vector, LIMIT, False))

    async def fused(query: str) -> Sequence[str]:
        assert encoder is not None
        return pages_of(await HybridRetriever(store, encoder, 60.0).search(query, LIMIT, False))

    found: dict[str, Find] = {f"{name}, words": by_words}
    if encoder is not None:
        found |= {f"{name}, vectors": by_vectors, f"{name}, fused": fused}
    return found


async def measure(find: Find, queries: Mapping[str, str]) -> dict[str, float]:
    """Quality and time of a search; `queries` maps each page to its query."""
    ranks, times = [], []
    for page, query in queries.items():
        begun = time.perf_counter()
        found = await find(query)
        times.append(1000 * (time.perf_counter() - begun))
        ranks.append(found.index(page) + 1 if page in found[:10] else 0)
    count = len(ranks)
    return {
        "recall@5": sum(0 < rank <= 5 for rank in ranks) / count,
        "MRR@10": sum(1 / rank for rank in ranks if rank) / count,
        "nDCG@10": sum(1 / math.log2(rank + 1) for rank in ranks if rank) / count,
        "ms": statistics.median(times),
        "ms p95": statistics.quantiles(times, n=20)[-1],
    }


def libraries(pages: Sequence[ManualPage], index: Path, encoder: Encoder) -> dict[str, Find]:
    """bm25s on whole pages, and the exact cosine of the index's passages."""
    names = [page.name for page in pages]
    plain = bm25s.BM25()
    plain.index(bm25s.tokenize([p.text for p in pages], show_progress=False), show_progress=False)

    async def bm25(query: str) -> Sequence[str]:
        tokens = bm25s.tokenize([query], show_progress=False)
        found, _ = plain.retrieve(tokens, k=10, show_progress=False)
        return [names[number] for number in found[0]]

    texts = passages(index)
    vectors = numpy.array(
        encoder.encode([embedded_text(*each) for _, *each in texts]), dtype=numpy.float32
    )
    owners = [path.removesuffix(".txt") for path, *_ in texts]

    async def cosine(query: str) -> Sequence[str]:
        [vector] = await encoder.embed([query])
        scores = vectors @ numpy.array(vector, dtype=numpy.float32)
        best = numpy.argsort(-scores)[:LIMIT]
        return list(dict.fromkeys(owners[number] for number in best))

    return {"bm25s": bm25, "exact cosine": cosine}


def passages(index: Path) -> list[tuple[str, str, str, str]]:
    """The path, title, heading and text of each passage of an index."""
    with closing(sqlite3.connect(index)) as connection:
        return connection.execute(
            "SELECT documents.path, documents.title, passages.heading, passages.text "
            "FROM passages JOIN documents ON documents.id = passages.id / 1048576"
        ).fetchall()


async def fill_postgres(url: str, index: Path, encoder: Encoder) -> bool:
    """Stores the passages in a table; with vectors, and returns True, if pgvector is there."""
    connection = await asyncpg.connect(url)
    await connection.execute(SCHEMA)
    found = await connection.fetch("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'")
    rows = passages(index)
    await connection.executemany(
        "INSERT INTO documents (title, url, text) VALUES ($1, $2, $3)",
        [(title, path, text) for path, title, _, text in rows],
    )
    if found:
        dimensions = len(encoder.encode(["x"])[0])
        await connection.execute(
            f"CREATE EXTENSION vector; ALTER TABLE documents ADD embedding vector({dimensions});"
        )
        vectors = encoder.encode([embedded_text(*each) for _, *each in rows])
        await connection.executemany(
            "UPDATE documents SET embedding = $2::text::vector WHERE id = $1",
            [(number, str(vector)) for number, vector in enumerate(vectors, 1)],
        )
        await connection.execute(
            "CREATE INDEX ON documents USING hnsw (embedding vector_cosine_ops)"
        )
    await connection.execute("ANALYZE documents")
    await connection.close()
    return bool(found)


async def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Measures all searches on both sets of queries."""
    pages = manual_pages(arguments.pages, arguments.seed, arguments.characters)
    thesaurus = Thesaurus(arguments.wordnet)
    asked = pages[: arguments.queries]
    sets = {
        "literal": {page.name: page.query for page in asked},
        "paraphrased": {
            page.name: paraphrase(page.query, thesaurus, arguments.seed) for page in asked
        },
    }
    encoder = Encoder(arguments.encoder, arguments.threads, arguments.cache)
    index = build(pages, folder)
    size_words = index.stat().st_size
    with closing(IndexWriter(index)) as writer:
        num_passages = await embed_passages(writer.vectors, encoder, 64)
    encoder.encode([query for queries in sets.values() for query in queries.values()])
    finds = searches("SQLite", IndexRetriever(index), encoder)
    finds |= libraries(pages, index, encoder)
    report: dict[str, object] = {
        "pages": len(pages),
        "characters": arguments.characters,
        "queries": len(asked),
        "passages": num_passages,
        "index MB": {"words": size_words / 1e6, "with vectors": index.stat().st_size / 1e6},
    }
    if BIN is None:
        return report | {"results": await measure_all(finds, sets)}
    with postgres() as url:
        has_vectors = await fill_postgres(url, index, encoder)
        store = PostgresRetriever(
            url, "documents", "english", 60.0, "embedding" if has_vectors else ""
        )
        finds |= searches("PostgreSQL", store, encoder if has_vectors else None)
        report["results"] = await measure_all(finds, sets)
        await store.close()
    return report


async def measure_all(
    finds: Mapping[str, Find], sets: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, dict[str, float]]]:
    """The measures of each search, by set of queries; prints them."""
    results: dict[str, dict[str, dict[str, float]]] = {}
    for kind, queries in sets.items():
        results[kind] = {}
        for name, find in finds.items():
            results[kind][name] = measured = await measure(find, queries)
            values = "  ".join(f"{key} {value:.3f}" for key, value in measured.items())
            print(f"{kind:12} {name:22} {values}", flush=True)
    return results


def build(pages: Sequence[ManualPage], folder: Path) -> Path:
    """An index of the pages by words, a document each."""
    docs = folder / "docs"
    docs.mkdir()
    for page in pages:
        (docs / f"{page.name}.txt").write_text(page.text)
    assert build_index([str(docs), "--out", str(folder / "index")]) == 0
    return folder / "index"


async def measure_time(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Times searches in an index of many passages, and compares its vectors with an exact search.

    The vectors are mixtures of those of some passages: encoding all of them would take hours.
    """
    pages = list(unrendered_pages(arguments.seed, arguments.characters))
    queries = {page.name: page.query for page in pages[: arguments.queries]}
    index = build(pages[: arguments.pages], folder)
    encoder = Encoder(arguments.encoder, arguments.threads, arguments.cache)
    known = encoder.encode(list(queries.values()))
    with closing(IndexWriter(index)) as writer:
        missing = writer.vectors.unembedded()[: arguments.passages]
        sample = random.Random(arguments.seed).sample(missing, min(NUM_MIXED, len(missing)))
        made = numpy.array(encoder.encode([each.text for each in sample]), dtype=numpy.float32)
        vectors = mixtures(made, len(missing), arguments.seed)
        writer.vectors.use(EmbeddingModel(encoder.model, vectors.shape[1]))
        for begin in range(0, len(missing), 1000):
            batch = missing[begin : begin + 1000]
            writer.vectors.store(batch, vectors[begin : begin + 1000].tolist())
    store = IndexRetriever(index)
    texts = [each.text for each in missing]
    recalls = []
    for vector in known:
        scores = vectors @ numpy.array(vector, dtype=numpy.float32)
        exact = {texts[number] for number in numpy.argsort(-scores)[:LIMIT]}
        found = await store.search_vectors("", vector, LIMIT, False)
        # The text of a passage ends its embedded text, after title and heading.
        recalls.append(sum(any(text.endswith(each.text) for text in exact) for each in found))
    report: dict[str, object] = {
        "passages": len(missing),
        "recall@100": sum(recalls) / LIMIT / len(known),
    }
    report["results"] = await measure_all(searches("SQLite", store, encoder), {"time": queries})
    report["index MB"] = index.stat().st_size / 1e6
    await store.close()
    return report


def mixtures(vectors: numpy.ndarray, number: int, seed: int) -> numpy.ndarray:
    """`number` vectors of length 1, each between two of `vectors`, with a little noise."""
    chosen = numpy.random.default_rng(seed)
    one, other = chosen.integers(0, len(vectors), (2, number))
    share = chosen.uniform(0.5, 1.0, (number, 1)).astype(numpy.float32)
    noise = chosen.standard_normal((number, vectors.shape[1]), dtype=numpy.float32)
    mixed = share * vectors[one] + (1 - share) * vectors[other]
    mixed += NOISE * noise / numpy.sqrt(vectors.shape[1])
    return mixed / numpy.linalg.norm(mixed, axis=1, keepdims=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.retrieval", description=__doc__)
    parser.add_argument("--encoder", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--pages", type=int, default=2500)
    parser.add_argument("--passages", type=int, default=0, help="measure the time in this many")
    parser.add_argument("--characters", type=int, default=6000, help="text of each page")
    parser.add_argument("--queries", type=int, default=500, help="queries of each set")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cache", type=Path, help="folder for vectors, to measure again")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = measure_time if arguments.passages else compare
        report = asyncio.run(run(arguments, Path(folder)))
    text = json.dumps(report, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
