"""What the benchmarks share: processes, load generators, statistics."""
