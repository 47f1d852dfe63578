"""Command line of `benchmarks.weights`."""

from benchmarks.weights.measure_publish import main

if __name__ == "__main__":
    main()
