"""Audit of every sample of a run, from its ledger and checkpoints alone: `python -m launch.audit RUN`

Exit code 0 where every sample of the steps that count was trained exactly once or dropped for a stated reason; 1 where
not, with the names of the samples; 2 where RUN is no run folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from demopsd_dist.run_record.audit import AuditReport, audit
from demopsd_dist.run_record.folder import RunFolder
from launch._command_line import exit_code_of


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder, for example runs/demo")
    arguments = parser.parse_args(argv)

    def work() -> int:
        report = audit(RunFolder(arguments.run))
        print(format_report(report))
        return 0 if report.sound else 1

    return exit_code_of(work)


def format_report(report: AuditReport) -> str:
    """The report as lines for the terminal."""
    lines = [f"{report.steps} steps, {report.issued:,} samples issued for them"]
    lines.append(f"  {report.trained:>9,} trained")
    lines += [f"  {count:>9,} dropped: {reason}" for reason, count in report.dropped.items()]
    if report.resampled:
        lines.append(f"{report.resampled:,} samples came from a repeated request for their prompt")
    if report.undone:
        lines.append(f"{report.undone:,} samples of steps that were undone by going back to a checkpoint")
    if report.in_flight:
        lines.append(f"{report.in_flight:,} samples were in flight when the run stopped or restarted")
    lines += [f"life {life} from step {step}: {why}" for life, step, why in report.lives]
    lines.append("checkpoints: " + (", ".join(report.checkpoints) or "none"))
    lines += [f"FAULT: {fault}" for fault in report.faults]
    lines.append("every sample is accounted for" if report.sound else "not every sample is accounted for")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
