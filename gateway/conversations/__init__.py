"""The store of responses and their conversations: in memory, in SQLite or in PostgreSQL.

It knows ids, owners, sizes and times, and nothing of the contents.
"""
