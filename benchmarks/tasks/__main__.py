"""Command line of `benchmarks.tasks`."""

from benchmarks.tasks.choose_tasks import main

if __name__ == "__main__":
    main()
