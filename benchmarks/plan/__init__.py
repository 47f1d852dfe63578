"""Predictions of the planner compared with measured and published steps: `python -m benchmarks.plan`."""
