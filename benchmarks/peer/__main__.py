"""Command line of `benchmarks.peer`."""

from benchmarks.peer.compare_peers import main

if __name__ == "__main__":
    main()
