"""Grafana dashboard of all metrics: `demopsd grafana > grafana.json`, to be imported in Grafana

Prints the dashboard as JSON. It reads the metrics that a run serves with `sinks.prometheus_port` (docs/report.md).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from demopsd_dist.run_record.prometheus import dashboard
from launch._command_line import command_parser, exit_code_of


def make_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    return command_parser("grafana", __doc__)


def main(argv: Sequence[str] | None = None) -> int:
    make_parser().parse_args(argv)
    return exit_code_of(print_dashboard)


def print_dashboard() -> int:
    print(json.dumps(dashboard(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
