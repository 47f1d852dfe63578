"""Measurements: `python -m benchmarks.<name>`; results are kept in `benchmarks/results/`."""
