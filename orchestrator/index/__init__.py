"""The search index: its file format, document parsing, and `python -m orchestrator.index`.

Querying the index belongs to `orchestrator.search.retrievers`.
"""
