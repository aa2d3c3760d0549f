"""Engines that benchmarks/engine.py compares, each in a process of its own.

python -m benchmarks.contenders.NAME FOLDER STREAMS PROMPT OUTPUT THREADS

prints one line of JSON: {"prefill_tokens_per_second", "decode_tokens_per_second"}.
"""
