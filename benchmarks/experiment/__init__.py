"""Experiments: every arm of a YAML file, tuned and trained, with a table of the results: `python -m benchmarks.experiment`."""
