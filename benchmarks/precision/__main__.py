"""Command line: `python -m benchmarks.precision`; see `rounding_page.py`."""

from benchmarks.precision.rounding_page import main

if __name__ == "__main__":
    main()
