"""Command line of `benchmarks.faults`."""

import sys

from benchmarks.faults.fault_campaign import main

if __name__ == "__main__":
    sys.exit(main())
