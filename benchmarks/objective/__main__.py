"""Command line of `benchmarks.objective`."""

from benchmarks.objective.measure_losses import main

if __name__ == "__main__":
    main()
