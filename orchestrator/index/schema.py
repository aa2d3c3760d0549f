"""The file format of the search index: SQLite with FTS5, and vectors of sqlite-vec."""

from __future__ import annotations

SCHEMA_VERSION = 2
"""Version 1 had English terms only, and no vectors."""

MAX_PASSAGES = 1 << 20
"""Maximum passages of a document; those of document `d` have row ids from `d * MAX_PASSAGES`."""

WORDS = """
CREATE TABLE words (word TEXT PRIMARY KEY, passages INTEGER NOT NULL) WITHOUT ROWID
"""
"""The words of the passages, as written but folded. Indexes made before it was introduced get it
with their next update."""

SCHEMA = f"""
PRAGMA user_version = {SCHEMA_VERSION};

CREATE TABLE documents (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL UNIQUE,
    url TEXT NOT NULL,
    title TEXT NOT NULL,
    language TEXT NOT NULL,
    unsafe INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL,
    size INTEGER NOT NULL,
    sha256 TEXT NOT NULL
);

CREATE INDEX unsafe_documents ON documents (id) WHERE unsafe;

CREATE TABLE passages (
    id INTEGER PRIMARY KEY,
    heading TEXT NOT NULL,
    text TEXT NOT NULL
);

-- The terms are split, folded and stemmed already; the tokenizer splits them at spaces only.
CREATE VIRTUAL TABLE terms USING fts5 (
    title, heading, text, content = '',
    tokenize = "unicode61 remove_diacritics 0 categories 'L* M* N* P* S* C*'"
);

{WORDS};

-- Encoder and number of dimensions of the vectors; no row without vectors.
CREATE TABLE embedding (model TEXT NOT NULL, dimensions INTEGER NOT NULL);
"""

VECTORS = """
CREATE TABLE signs (id INTEGER PRIMARY KEY, coarse BLOB NOT NULL, unsafe INTEGER NOT NULL);
CREATE TABLE vectors (id INTEGER PRIMARY KEY, fine BLOB NOT NULL);
"""
"""A vector for each passage, by its id: the signs of its numbers, and 8-bit numbers.

Two tables, because a search reads the signs of all passages, and the numbers of a few. No virtual
table of sqlite-vec: its search takes time in proportion to the candidates times the passages.
"""
