"""Command line of `benchmarks.throughput`."""

import sys

from benchmarks.throughput.measure import main

if __name__ == "__main__":
    sys.exit(main())
