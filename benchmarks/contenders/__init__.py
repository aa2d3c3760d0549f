"""Engines that benchmarks/engine.py compares, each run in a separate process:

python -m benchmarks.contenders.NAME FOLDER STREAMS PROMPT OUTPUT THREADS

Each prints one line of JSON: {"prefill_tokens_per_second", "decode_tokens_per_second"}.
"""
