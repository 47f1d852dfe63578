"""Command line of `benchmarks.plan`."""

from benchmarks.plan.compare_plans import main

if __name__ == "__main__":
    main()
