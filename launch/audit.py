"""Audit: `python -m launch.audit RUN` -- what became of every sample of a run, from its ledger and checkpoints alone.

Exit code 0 where every sample of the steps that count was trained exactly once or dropped for a stated reason, 1 where
not, with the samples by name; 2 where RUN is no run folder.
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
        account = audit(RunFolder(arguments.run))
        print(told(account))
        return 0 if account.sound else 1

    return exit_code_of(work)


def told(account: AuditReport) -> str:
    lines = [f"{account.steps} steps, {account.issued:,} samples issued for them"]
    lines.append(f"  {account.trained:>9,} trained")
    lines += [f"  {count:>9,} dropped: {reason}" for reason, count in account.dropped.items()]
    if account.resampled:
        lines.append(f"{account.resampled:,} samples came only when their prompt was asked for again")
    if account.undone:
        lines.append(f"{account.undone:,} samples of steps that were undone by going back to a checkpoint")
    if account.in_flight:
        lines.append(f"{account.in_flight:,} samples were in flight when a life ended")
    lines += [f"life {life} from step {step}: {why}" for life, step, why in account.lives]
    lines.append("checkpoints: " + (", ".join(account.checkpoints) or "none"))
    lines += [f"FAULT: {fault}" for fault in account.faults]
    lines.append("every sample is accounted for" if account.sound else "the account does not add up")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
