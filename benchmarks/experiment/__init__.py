"""Experiments: every arm of a YAML file, tuned and trained, with tables: `python -m benchmarks.experiment`."""
