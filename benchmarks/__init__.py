"""Measurements: `python -m benchmarks.<name>`. Results are in `benchmarks/results/`."""
