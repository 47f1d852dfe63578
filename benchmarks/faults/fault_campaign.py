"""Faults in whole training runs: `python -m benchmarks.faults [--runs 5] [--hosts 4] [--minutes 60]`

Each run is a series of processes (lives) of `demopsd train` on real engines. In each, faults that are drawn from the
run's seed strike workers, Ray's servers, the driver, all processes at once, or the disk, at any stage, the start
included; the last one ends the process. Then a file of the run may be torn, and the run is resumed. The last life ends
as it should. The audit must find every sample trained once or dropped for a reason, no process and no shared memory may
be left, no life may hang, and every message must name a known cause. Runs over simulated hosts are disturbed by links
that are cut and by killed workers (`benchmarks/faults/host_runs.py`). Goes on where an earlier call has ended.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common.network import why_not
from benchmarks.common.results_files import RESULTS, save
from benchmarks.common.run_processes import MARK, end_marked
from benchmarks.faults.fault_page import report
from benchmarks.faults.fault_plan import LifePlan, draw_run
from benchmarks.faults.faulted_run import FILLER
from benchmarks.faults.host_runs import FIRST_SEED, one_host_run
from benchmarks.faults.life_checks import GONE_S, SHORT_STEPS, Row, ended, life_command, life_row, run_row
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.util.code_caches import private_folder
from demopsd_dist.util.temporary_files import FOLDER

NAME = "faults-cpu"
ROOT = Path(__file__).parents[2]
VOLUME_MIB = 512
WORDS = (
    "rollout.cpus_per_worker=0.1",
    "teacher.cpus_per_worker=0.1",
    "learner.cpus_per_worker=0.1",
    "learner.num_workers=1",
    *SHORT_STEPS,
    "limits.silence_s=15",
)


def one_run(seed: int, lives: int, each: int) -> Row:
    """Train one run on this machine through its lives; the account of it."""
    began, before = time.monotonic(), files_outside()
    with volume() as (folder, can_fill_disk):
        rows: list[Row] = []
        for plan in draw_run(seed, lives, each, can_fill_disk):
            rows.append(live(folder, plan, seed + len(rows)))
            print(f"run {seed}, life {len(rows)}: {rows[-1]['summary']}", flush=True)
        return run_row(seed, rows, RunFolder(folder / "demo"), files_outside() - before, began)


def live(folder: Path, plan: LifePlan, seed: int) -> Row:
    """Train, or go on training, in one process until it ends; then tear a file, if the plan says so.

    Args:
        folder: of the runs; the first life makes the run's folder in it.
    """
    mark, began = uuid.uuid4().hex, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="demopsd-faults-") as own:
        plan_file, record, log = Path(own) / "plan", Path(own) / "record", Path(own) / "log"
        command = life_command(plan, folder, plan_file, record, WORDS)
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
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
    torn = tear(RunFolder(folder / "demo"), plan.torn, random.Random(seed)) if plan.torn else None
    return life_row(planted, process.returncode, hung, left, text, torn, began)


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
    parser.add_argument(
        "--each", type=int, default=9, help="faults in a life before its last one, without those during a recovery"
    )
    parser.add_argument("--hosts", type=int, default=4, help="number of runs over simulated hosts, a seed each")
    parser.add_argument("--host-lives", type=int, default=2, help="processes of a run over simulated hosts")
    parser.add_argument("--host-each", type=int, default=3, help="number of faults in such a process")
    parser.add_argument("--minutes", type=float, default=60, help="no run begins after this time")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args(argv)
    if arguments.hosts and (reason := why_not()) is not None:
        print(f"no runs over hosts: {reason}", flush=True)
        arguments.hosts = 0
    raw = arguments.out / f"{NAME}.json"
    runs: list[Row] = json.loads(raw.read_text())["runs"] if raw.exists() else []
    began = time.monotonic()
    for seed in (*range(arguments.runs), *range(FIRST_SEED, FIRST_SEED + arguments.hosts)):
        if any(run["seed"] == seed for run in runs):
            continue
        if time.monotonic() - began > arguments.minutes * 60:
            break
        if seed >= FIRST_SEED:
            runs.append(one_host_run(seed, arguments.host_lives, arguments.host_each))
        else:
            runs.append(one_run(seed, arguments.lives, arguments.each))
        save(arguments.out, NAME, {"words": WORDS, "runs": runs}, report(runs))
    sound = not any(run["audit"] or run["left"] or any(life["wrong"] for life in run["lives"]) for run in runs)
    return 0 if sound else 1
