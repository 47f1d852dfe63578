"""Time of a step by stage, and the driver's own share of it: `python -m benchmarks.step`."""
