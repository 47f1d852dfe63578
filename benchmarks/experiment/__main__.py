"""Command line of `benchmarks.experiment`."""

import sys

from benchmarks.experiment.run_arms import main

if __name__ == "__main__":
    sys.exit(main())
