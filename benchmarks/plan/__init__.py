"""The planner against measured and published steps: `python -m benchmarks.plan`."""
