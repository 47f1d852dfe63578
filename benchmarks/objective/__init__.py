"""Time and memory of each loss in its plain and its fused form: `python -m benchmarks.objective`."""
