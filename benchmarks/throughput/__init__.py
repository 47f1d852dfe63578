"""Samples per second over a sweep of settings: `python -m benchmarks.throughput`."""
