"""The SQLite module of the index: one that can load the extension for vectors, where there is one.

Python's own module may be built without loadable extensions; then pysqlite3, which contains a
recent SQLite, is used. Both have the same interface. Only one is used in a process, because two
copies of SQLite would release each other's locks on a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
else:
    try:
        from pysqlite3 import dbapi2 as sqlite3
    except ImportError:
        import sqlite3

__all__ = ["load_vectors", "sqlite3"]


def load_vectors(connection: sqlite3.Connection) -> None:
    """Adds sqlite-vec's functions. Raises ImportError, AttributeError, sqlite3.Error."""
    import sqlite_vec  # optional: an index without vectors does not need it

    connection.enable_load_extension(True)
    sqlite_vec.load(connection)
    connection.enable_load_extension(False)
