"""HTML report: `demopsd report RUN [RUN ...] [--out FILE.html]`

Writes one HTML file that shows a run, or compares several, and needs no network and no server. For one run it is
`report.html` in the run folder. Exit code 0; 2 for wrong input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from demopsd_dist.report import write_report
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.util.errors import ConfigError
from demopsd_dist.util.fitted_lines import print_fitted
from launch._command_line import command_parser, exit_code_of, user_path


def make_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = command_parser("report", __doc__)
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="a run folder")
    parser.add_argument(
        "--out", type=user_path, help="HTML file; default: report.html in the run folder, or here for several runs"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    return exit_code_of(lambda: write(arguments.runs, arguments.out))


def write(folders: Sequence[Path], out: Path | None) -> int:
    """Write the report and print its path; the exit code."""
    if len(set(folders)) < len(folders):
        raise ConfigError("a run folder is named twice. Name each once.")
    if out is None:
        out = RunFolder(folders[0] if len(folders) == 1 else Path()).report
    path = write_report(folders, out)
    print_fitted([f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
