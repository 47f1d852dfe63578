"""Command line of `benchmarks.step`."""

from benchmarks.step.measure_step import main

if __name__ == "__main__":
    main()
