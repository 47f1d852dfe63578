"""Wait until nodes have joined a Ray cluster: `python -m launch.wait_for_nodes ADDRESS NAME ... [--within 300]`

Names are those given to `ray start --node-name`. Exit code 0 when all are there, 1 with the names of those that did not
come in time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from launch._command_line import exit_code_of


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.wait_for_nodes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("address", help="of the head: host:port")
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--within", type=float, default=300.0, metavar="SECONDS")
    arguments = parser.parse_args(argv)
    return exit_code_of(lambda: waited(arguments))


def waited(arguments: argparse.Namespace) -> int:
    from workers.cluster.wait_for_nodes import wait_for_nodes

    wait_for_nodes(arguments.address, arguments.names, arguments.within)
    print(f"{len(arguments.names)} nodes have joined {arguments.address}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
