"""The file format of the search index: SQLite with FTS5."""

from __future__ import annotations

SCHEMA_VERSION = 1

MAX_PASSAGES = 1 << 20
"""Maximum passages of a document; those of document `d` have row ids from `d * MAX_PASSAGES`."""

SCHEMA = f"""
PRAGMA user_version = {SCHEMA_VERSION};

CREATE TABLE documents (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL UNIQUE,
    url TEXT NOT NULL,
    title TEXT NOT NULL,
    unsafe INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL,
    size INTEGER NOT NULL,
    sha256 TEXT NOT NULL
);

CREATE VIRTUAL TABLE passages USING fts5 (
    title, heading, text, tokenize = "porter unicode61 remove_diacritics 2"
);
"""
