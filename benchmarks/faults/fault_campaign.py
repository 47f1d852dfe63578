"""Faults in whole training runs: `python -m benchmarks.faults [--runs 5] [--lives 5] [--minutes 60]`

Each run is a series of processes (lives) of `demopsd train` on real engines. In each, faults that are drawn from the
run's seed strike workers, Ray's servers, the driver, all processes at once, or the disk, at any stage, the start
included; the last one ends the process. Then a file of the run may be torn, and the run is resumed. The last life ends
as it should. The audit must find every sample trained once or dropped for a reason, no process and no shared memory may
be left, no life may hang, and every message must name a known cause. Goes on where an earlier call has ended.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common.results_files import RESULTS, save
from benchmarks.common.run_processes import MARK, ROLES, end_marked
from benchmarks.common.timed_runs import DEMO
from benchmarks.faults.fault_page import report
from benchmarks.faults.fault_plan import DrawnFault, LifePlan, draw_run
from benchmarks.faults.faulted_run import FILLER
from benchmarks.faults.known_messages import causes_in
from demopsd_dist.run_record.audit import audit
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.util.code_caches import private_folder
from demopsd_dist.util.temporary_files import FOLDER

Row = dict[str, Any]
NAME = "faults-cpu"
ROOT = Path(__file__).parents[2]
VOLUME_MIB = 512
WORDS = (
    "rollout.cpus_per_worker=0.1",
    "teacher.cpus_per_worker=0.1",
    "learner.cpus_per_worker=0.1",
    "rollout.num_workers=1",
    "learner.num_workers=1",
    "learner.zero_stage=1",
    "rollout.prompts_per_step=4",
    "data.minisci_train_size=256",
    "data.minisci_test_size=8",
    "data.ood=null",
    "leakage.every_steps=0",
    "checkpoint.every_steps=2",
    "evaluation.at_start=false",
    "evaluation.samples=1",
    "limits.silence_s=15",
    "sinks.report=false",
)
SILENT_S = 240.0  # without a line of output, a life counts as hung
GONE_S = 15.0  # from a life's end to that of its last process
ENDLESS = 100_000


def one_run(seed: int, lives: int, each: int) -> Row:
    """Train one run through its lives.

    Returns:
        Its lives, the faults of its audit, and the files that it has left outside of its folder.
    """
    began, before = time.monotonic(), files_outside()
    with volume() as (folder, can_fill_disk):
        rows: list[Row] = []
        for plan in draw_run(seed, lives, each, can_fill_disk):
            rows.append(live(folder, plan, seed + len(rows)))
            print(f"run {seed}, life {len(rows)}: {rows[-1]['summary']}", flush=True)
        run = RunFolder(folder / "demo")
        account = audit(run)
        found = [str(fault) for fault in account.faults]
        if not (run.student / "model.safetensors").is_file():
            found.append("the run has left no student")
    return {
        "seed": seed,
        "lives": rows,
        "steps": account.steps,
        "samples": account.issued,
        "again": account.resampled,
        "undone": account.undone,
        "audit": found,
        "left": sorted(files_outside() - before),
        "seconds": round(time.monotonic() - began),
    }


def live(folder: Path, plan: LifePlan, seed: int) -> Row:
    """Train, or go on training, in one process until it ends; then tear a file, if the plan says so.

    Args:
        folder: of the runs; the first life makes the run's folder in it.
    """
    run, steps = RunFolder(folder / "demo"), ENDLESS
    resumes = run.config.is_file()
    if not plan.faults:
        steps = (audit(run).steps if run.ledger.is_file() else 0) + 4
    mark, began = uuid.uuid4().hex, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="demopsd-faults-") as own:
        plan_file, record, log = Path(own) / "plan", Path(own) / "record", Path(own) / "log"
        plan_file.write_text(json.dumps([fault.to_json() for fault in plan.faults]))
        words = [str(DEMO), *WORDS, f"output_dir={folder}", f"steps={steps}"]
        again = ["--resume"] if resumes else []
        module = [sys.executable, "-m", "benchmarks.faults.faulted_run", str(plan_file), str(record)]
        with log.open("w") as output:
            process = subprocess.Popen(
                [*module, *words, *again],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, MARK: mark},
                start_new_session=True,
            )
        hung = not ended(process, log)
        left = [str(process) for process in end_marked(mark, 0 if hung else GONE_S)]
        text = log.read_text(errors="replace")
        planted = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    (folder / FILLER).unlink(missing_ok=True)
    causes, unknown = causes_in(text.splitlines())
    row: Row = {
        "faults": planted,
        "code": process.returncode,
        "hung": hung,
        "left": left,
        "causes": dict(causes),
        "unknown": unknown,
        "last": text.rstrip().splitlines()[-1][:500] if text.strip() else "",
        "torn": tear(run, plan.torn, random.Random(seed)) if plan.torn else None,
        "seconds": round(time.monotonic() - began),
    }
    row["wrong"] = what_is_wrong(row)
    if row["wrong"]:
        row["output"] = text[-6000:]
    struck = ", ".join(f"{fault['action']} of {fault['target']} at {fault['stage']}" for fault in planted)
    row["summary"] = f"{struck or 'no fault'}; exit code {row['code']}; {row['wrong'] or 'as it should be'}"
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
    fault = DrawnFault(**{key: planted[-1][key] for key in ("stage", "target", "action", "delay_s", "pick")})
    if fault.action == "SIGKILL" and fault.target == "driver":
        return {-9}
    if fault.target in ("driver", "group"):
        return {130}
    if fault.target in ROLES and fault.stage != "start_roles":
        return {0}  # a run survives the loss of a worker
    return {1, 2} if fault.target == "disk" else {1}


def ended(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Wait for the end of a process; False if it writes nothing to its log for `SILENT_S`."""
    size, since = -1, time.monotonic()
    while process.poll() is None:
        if log.stat().st_size != size:
            size, since = log.stat().st_size, time.monotonic()
        if time.monotonic() > since + SILENT_S:
            return False
        time.sleep(0.1)
    return True


def tear(run: RunFolder, kind: str, rng: random.Random) -> str | None:
    """Cut a file of that kind at a random place. A checkpoint is torn only if there is an earlier one.

    Returns:
        Path of the file in the run folder; None if there is none.
    """
    checkpoints = sorted(path for path in run.checkpoints.glob("step-*") if path.is_dir())
    found = {
        "checkpoint": lambda: checkpoints[-1].rglob("*") if len(checkpoints) > 1 else (),
        "metrics": lambda: [run.metrics],
        "samples": lambda: sorted(run.samples.glob("*"))[-1:],
        "summary": lambda: [run.path / "summary.json"],
        "replay": lambda: run.replay.rglob("*"),
    }[kind]()
    files = sorted(path for path in found if path.is_file() and path.stat().st_size)
    if not files:
        return None
    file = rng.choice(files)
    size = file.stat().st_size
    # metrics lose at most the line that was being written: a crash does not take back what was flushed before
    os.truncate(file, size - rng.randint(1, min(size, 300)) if kind == "metrics" else rng.randrange(size))
    return str(file.relative_to(run.path))


@contextmanager
def volume() -> Iterator[tuple[Path, bool]]:
    """A folder for runs, and whether it is a volume of its own, which may be filled up. That needs root's rights."""
    with tempfile.TemporaryDirectory(prefix="demopsd-volume-") as name:
        command = ["mount", "-t", "tmpfs", "-o", f"size={VOLUME_MIB}m", "demopsd-faults", name]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        try:
            yield Path(name), mounted
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", name], check=True)


def files_outside() -> set[str]:
    """Files of shared memory, and temporary files of runs, on this machine."""
    temporary = Path(tempfile.gettempdir())
    places = [*Path("/dev/shm").glob("*"), *temporary.glob("vllm_dist_*"), *(private_folder() / FOLDER).glob("*")]
    return {str(path) for path in places}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the campaign. The exit code is 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="number of runs, a seed each")
    parser.add_argument("--lives", type=int, default=5, help="processes of a run")
    parser.add_argument("--each", type=int, default=9, help="largest number of faults in a life before the last one")
    parser.add_argument("--minutes", type=float, default=60, help="no run begins after this time")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args(argv)
    raw = arguments.out / f"{NAME}.json"
    runs: list[Row] = json.loads(raw.read_text())["runs"] if raw.exists() else []
    began = time.monotonic()
    for seed in range(arguments.runs):
        if any(run["seed"] == seed for run in runs):
            continue
        if time.monotonic() - began > arguments.minutes * 60:
            break
        runs.append(one_run(seed, arguments.lives, arguments.each))
        save(arguments.out, NAME, {"words": WORDS, "runs": runs}, report(runs))
    sound = not any(run["audit"] or run["left"] or any(life["wrong"] for life in run["lives"]) for run in runs)
    return 0 if sound else 1
