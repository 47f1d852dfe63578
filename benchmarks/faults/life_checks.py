"""Life of a disturbed run: the settings, the wait for its end, and what was wrong with it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.run_processes import ROLES
from benchmarks.common.timed_runs import DEMO
from benchmarks.faults.fault_plan import STEPS_APART, LifePlan
from benchmarks.faults.known_messages import causes_in
from demopsd_dist.run_record.audit import audit
from demopsd_dist.run_record.folder import RunFolder

Row = dict[str, Any]
ROOT = Path(__file__).parents[2]
SHORT_STEPS = (
    "rollout.num_workers=1",
    "learner.zero_stage=1",
    "rollout.prompts_per_step=4",
    "data.minisci_train_size=256",
    "data.minisci_test_size=8",
    "data.ood=null",
    "leakage.every_steps=0",
    "checkpoint.every_steps=2",
    "evaluation.at_start=false",
    "evaluation.samples=1",
    "sinks.report=false",
)
"""Settings of all disturbed runs."""
SILENT_S = 240.0  # without a line of output, a life counts as hung
GONE_S = 15.0  # from a life's end to that of its last process
ENDLESS = 100_000
LAST_STEPS = 4  # of a life after its last fault
STEPS_A_FAULT = STEPS_APART + 1  # a checkpoint is written after every second step


def steps_of(run: RunFolder, plan: LifePlan) -> int:
    """Setting `steps` of a life: without end if a fault ends it, else enough for its faults and a few more."""
    if any(fault.ends_run for fault in plan.faults):
        return ENDLESS
    done = audit(run).steps if run.ledger.is_file() else 0
    return done + len(plan.faults) * STEPS_A_FAULT + LAST_STEPS


def life_command(plan: LifePlan, runs: Path, plan_file: Path, record: Path, words: Sequence[str]) -> list[str]:
    """Command of a life, which goes on with the run in `runs` if there is one; writes the plan's file.

    Args:
        record: file to which the life appends its faults.
        words: settings of the run.
    """
    run = RunFolder(runs / "demo")
    plan_file.write_text(json.dumps([fault.to_json() for fault in plan.faults]))
    module = [sys.executable, "-m", "benchmarks.faults.faulted_run", str(plan_file), str(record), str(DEMO)]
    again = ["--resume"] if run.config.is_file() else []
    return [*module, *words, f"output_dir={runs}", f"steps={steps_of(run, plan)}", *again]


def run_row(seed: int, lives: Sequence[Row], run: RunFolder, left: Iterable[str], began: float) -> Row:
    """Account of a run: its lives, the faults of its audit, and the files that it has left outside of its folder.

    Args:
        began: time of the monotonic clock.
    """
    account = audit(run)
    found = [str(fault) for fault in account.faults]
    if not (run.student / "model.safetensors").is_file():
        found.append("the run has left no student")
    return {
        "seed": seed,
        "lives": lives,
        "steps": account.steps,
        "samples": account.issued,
        "again": account.resampled,
        "undone": account.undone,
        "audit": found,
        "left": sorted(left),
        "seconds": round(time.monotonic() - began),
    }


def life_row(
    faults: Sequence[Row], code: int, hung: bool, left: Sequence[str], text: str, torn: str | None, began: float
) -> Row:
    """Account of a life.

    Args:
        faults: its faults, as they were recorded.
        code: its exit code.
        left: processes that it has left.
        text: its output; paths in it are made relative to the checkout.
        torn: file that was torn after its end.
        began: time of the monotonic clock.
    """
    text = text.replace(f"{ROOT}/", "")
    causes, unknown = causes_in(text.splitlines())
    row: Row = {
        "faults": faults,
        "code": code,
        "hung": hung,
        "left": left,
        "causes": dict(causes),
        "unknown": unknown,
        "last": text.rstrip().splitlines()[-1][:500] if text.strip() else "",
        "torn": torn,
        "seconds": round(time.monotonic() - began),
    }
    row["wrong"] = what_is_wrong(row)
    if row["wrong"]:
        row["output"] = text[-6000:]
    struck = ", ".join(f"{fault['action']} of {fault['target']} at {fault['stage']}" for fault in faults)
    row["summary"] = f"{struck or 'no fault'}; exit code {code}; {row['wrong'] or 'as it should be'}"
    return row


def what_is_wrong(row: Row) -> str | None:
    """The first thing that a life did wrong; None if nothing."""
    if row["hung"]:
        return f"no line of output for {SILENT_S:g} s"
    if row["left"]:
        return f"left processes: {', '.join(row['left'])}"
    if row["unknown"]:
        return f"a message without a known cause: {row['unknown'][0]}"
    if row["code"] not in expected_codes([fault for fault in row["faults"] if fault["planted"]]):
        return f"exit code {row['code']}; last line: {row['last']}"
    return None


def expected_codes(planted: Sequence[Row]) -> set[int]:
    """Exit codes that the last of these faults may lead to."""
    if not planted:
        return {0}
    stage, target, action = (planted[-1][key] for key in ("stage", "target", "action"))
    if action == "SIGKILL" and target == "driver":
        return {-9}
    if target in ("driver", "group"):
        return {130}
    if target in ROLES and stage != "start_roles":
        return {0}  # a run survives the loss of a worker
    return {1, 2} if target == "disk" else {1}


def ended(process: subprocess.Popen[bytes], log: Path, meanwhile: Callable[[], None] = lambda: None) -> bool:
    """Wait for the end of a process; False if it writes nothing to its log for `SILENT_S`.

    Args:
        meanwhile: called about ten times a second.
    """
    size, since = -1, time.monotonic()
    while process.poll() is None:
        if log.stat().st_size != size:
            size, since = log.stat().st_size, time.monotonic()
        if time.monotonic() > since + SILENT_S:
            return False
        meanwhile()
        time.sleep(0.1)
    return True
