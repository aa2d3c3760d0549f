"""Builds the search index: `python -m orchestrator.index DOCS… --out FILE`."""
