"""A training run that plants faults in itself: `python -m benchmarks.faults.faulted_run PLAN RECORD [words of train]`

It is `demopsd train` with another log: one that knows the stage at hand and disturbs the run there. Each fault is
appended to RECORD before it is planted, since the process may not outlive it. On a cluster that the run has joined,
workers are on other hosts: the reader of RECORD plants those faults.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common.run_processes import ROLES, name_of, role_processes
from benchmarks.faults.fault_plan import STEPS_APART, DrawnFault
from demopsd_dist.run_record.log import RunLog
from launch.train import main as train

FILLER = "filler"  # the file that fills the volume


class DisturbingLog(RunLog):
    """A run log that plants the drawn faults, in order, in the stages that they name."""

    def __init__(
        self, *arguments: Any, faults: Sequence[DrawnFault], record: Path, on_hosts: bool, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._faults, self._record, self._on_hosts = list(faults), record, on_hosts
        self._stages: list[str] = []
        self._steps_since = 0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Time a stage, and plant the next fault if it is due."""
        if self._faults and self._faults[0].stage == stage and self._is_due(stage):
            fault = self._faults.pop(0)
            self._steps_since = 0
            timer = threading.Timer(fault.delay_s, self._plant, [fault])
            timer.daemon = True
            timer.start()
        self._stages.append(stage)
        try:
            with super().timed(stage):
                yield
        finally:
            self._stages.remove(stage)

    def write_step(self, step: int, metrics: dict[str, float]) -> None:
        """Record a step."""
        super().write_step(step, metrics)
        self._steps_since += 1
        if self._faults and self._faults[0].stage in ("recover", "start_roles") and self._steps_since > STEPS_APART:
            self._faults.pop(0)  # its moment never came

    def _is_due(self, stage: str) -> bool:
        return stage in ("recover", "start_roles") or self._steps_since >= STEPS_APART

    def _plant(self, fault: DrawnFault) -> None:
        elsewhere = self._on_hosts and fault.target in ROLES
        victims = [] if elsewhere else victims_of(fault)
        planted = None if elsewhere else bool(victims)
        row = fault.to_json() | {"during": list(self._stages), "step": self.last_step, "planted": planted}
        with self._record.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if fault.target == "disk":
            fill(self.folder.path.parent)
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, fault.signal) if fault.target != "disk" else None


def victims_of(fault: DrawnFault) -> list[int]:
    """Processes that the fault strikes; empty if there is none of that kind now."""
    own = os.getpid()
    if fault.target in ("driver", "disk"):
        return [own]
    others = psutil.Process().children(recursive=True)
    if fault.target == "group":  # SLURM signals every process of a job; a terminal that closes, the driver's group
        everyone = fault.action == "SIGTERM"
        return [own, *(process.pid for process in others if everyone or shares_group(process.pid))]
    is_role = fault.target in ROLES
    struck = role_processes(fault.target) if is_role else [one for one in others if name_of(one) == fault.target]
    found = [process.pid for process in struck]
    return [found[int(fault.pick * len(found))]] if found else []


def shares_group(pid: int) -> bool:
    """Whether a signal to this process's group reaches that process."""
    try:
        return os.getpgid(pid) == os.getpgrp()
    except ProcessLookupError:
        return False


def fill(volume: Path) -> None:
    """Write a file that leaves no space on the volume."""
    with suppress(OSError), (volume / FILLER).open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    with suppress(OSError), (volume / FILLER).open("ab", buffering=0) as file:
        while True:
            file.write(b"0")


def main(argv: Sequence[str]) -> int:
    """Train with the faults of the plan in the first argument."""
    plan, record, *arguments = argv
    faults = [DrawnFault(**row) for row in json.loads(Path(plan).read_text())]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have it ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup leaves it ignored, and then the fault has no effect
    on_hosts = any(word.startswith("ray_address=") for word in arguments)
    return train(arguments, partial(DisturbingLog, faults=faults, record=Path(record), on_hosts=on_hosts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
