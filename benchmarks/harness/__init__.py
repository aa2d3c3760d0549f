"""Shared by the benchmarks: processes, load generators and statistics; no commands."""
