"""Command line of `benchmarks.endurance`."""

import sys

from benchmarks.endurance.long_run import main

if __name__ == "__main__":
    sys.exit(main())
