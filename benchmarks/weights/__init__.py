"""Time and rate of publishing weights, by transport and number of receivers: `python -m benchmarks.weights`."""
