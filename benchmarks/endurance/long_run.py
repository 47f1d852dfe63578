"""Growth over a long run: `python -m benchmarks.endurance [--steps 1000]`

Trains the demo's model with very small steps on real engines, as `demopsd train` does, and reads every few seconds the
memory and open files of each process, shared memory, Ray's object store, and the size of every file of the run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.results_files import RESULTS, save
from benchmarks.common.run_processes import training_process
from benchmarks.common.timed_runs import DEMO
from benchmarks.endurance.growth import report
from benchmarks.endurance.usage import Usage, read_usage
from demopsd_dist.run_record.audit import audit
from demopsd_dist.run_record.folder import RunFolder

NAME = "endurance-cpu"
EVERY_S = 4.0
WORDS = (
    "rollout.num_workers=1",
    "rollout.prompts_per_step=2",
    "rollout.group_size=4",
    "learner.num_workers=1",
    "learner.zero_stage=1",
    "data.minisci_train_size=64",
    "data.minisci_test_size=8",
    "data.ood=null",
    "evaluation.at_start=false",
    "evaluation.every_steps=50",
    "evaluation.samples=1",
    "leakage.every_steps=50",
    "checkpoint.every_steps=20",
    "checkpoint.replayable=false",
    "samples.responses=4",
)


def observe(words: Sequence[str], folder: Path) -> tuple[list[Usage], int, RunFolder]:
    """Train, and read the usage after every few seconds in which a step has ended.

    Returns:
        The readings, the exit code, and the run folder.
    """
    run = RunFolder(folder / "demo")
    readings: list[Usage] = []
    began = time.monotonic()
    with training_process([str(DEMO), f"output_dir={folder}", *words], folder / "log") as process:
        while process.poll() is None:
            time.sleep(EVERY_S)
            step = steps_of(run)
            if step and (not readings or step > readings[-1].step) and process.poll() is None:
                readings.append(read_usage(process, run.path, step, time.monotonic() - began))
    return readings, process.returncode, run


def steps_of(run: RunFolder) -> int:
    """Last step whose metrics or evaluation the run has written; 0 before the first."""
    lines = run.metrics.read_text().rpartition("\n")[0].splitlines() if run.metrics.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the benchmark. The exit code is 1 where the run failed or its audit found a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings over those of the benchmark")
    arguments = parser.parse_args(argv)
    words = [*WORDS, f"steps={arguments.steps}", *arguments.words]
    with tempfile.TemporaryDirectory(prefix="demopsd-endurance-") as folder:
        readings, exit_code, run = observe(words, Path(folder))
        log = (Path(folder) / "log").read_text(encoding="utf-8")
        if exit_code:
            print(log[-4000:], file=sys.stderr)
        account = audit(run)
    raw: dict[str, Any] = {
        "steps": account.steps,
        "samples": account.issued,
        "words": words,
        "exit_code": exit_code,
        "audit": [str(fault) for fault in account.faults],
        "readings": [reading.to_json() for reading in readings],
    }
    save(arguments.out, NAME, raw, report(raw))
    return 1 if exit_code or account.faults else 0
