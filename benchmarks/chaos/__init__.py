"""Planted faults: a seeded campaign on simulated engines, and one on real ones: `python -m benchmarks.chaos`."""
