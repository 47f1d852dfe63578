"""Wait until nodes have joined a Ray cluster: `python -m launch.wait_for_nodes ADDRESS NAME ... [--within 300]`

Names are those given to `ray start --node-name`. Exit code 0 when all have joined, 1 with the names of the nodes that
did not join in time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from launch._command_line import command_parser, exit_code_of


def make_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = command_parser("wait_for_nodes", __doc__)
    parser.add_argument("address", help="address of the head, host:port")
    parser.add_argument("names", nargs="+", metavar="NAME", help="node names")
    parser.add_argument("--within", type=float, default=300.0, metavar="SECONDS", help="time limit")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    return exit_code_of(lambda: wait(arguments))


def wait(arguments: argparse.Namespace) -> int:
    """Wait for the nodes and print their number; the exit code."""
    from workers.cluster.wait_for_nodes import wait_for_nodes

    wait_for_nodes(arguments.address, arguments.names, arguments.within)
    print(f"{len(arguments.names)} nodes have joined {arguments.address}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
