"""Queries with known answers for benchmarks/retrieval.py: manual pages, and paraphrases of them."""
