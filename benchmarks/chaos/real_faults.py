"""Faults planted in real engines: processes killed, or stopped by SIGSTOP, at chosen moments of a training run."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Self

from rich.console import Console

from benchmarks.common.run_processes import ROLES, role_processes
from benchmarks.common.timed_runs import DEMO, RunLogWithSteps, task_of
from benchmarks.faults.fault_plan import STAGES
from demopsd_dist.config import Config, load
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.run_record.audit import AuditReport, audit
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.log import Metrics
from demopsd_dist.training.recovery import train_with_recovery
from demopsd_dist.training.run import RunState
from launch._task import compose_run
from workers.actors import RayActors
from workers.rollout.worker import RolloutWorker

DELAY_S = 0.05  # from the beginning of the stage to the signal
SMALL = (
    "rollout.cpus_per_worker=0.1",
    "teacher.cpus_per_worker=0.1",
    "learner.cpus_per_worker=0.1",
    "rollout.num_workers=2",
    "learner.num_workers=1",
    "rollout.prompts_per_step=8",
    "data.minisci_train_size=256",
    "data.test=null",
    "data.ood=null",
    "leakage.every_steps=0",
    "checkpoint.every_steps=2",
    "limits.silence_s=5",
)


@dataclass(frozen=True)
class PlantedFault:
    """A signal to a process of a role, sent shortly after a stage has begun."""

    stage: str
    role: str
    signal: signal.Signals = signal.SIGKILL

    def __str__(self) -> str:
        return f"{self.signal.name} of a {self.role} process at {self.stage}"


@dataclass
class FaultEffect:
    """Cost of a fault.

    Attributes:
        step: last step before the fault.
        lost_s: seconds until the next fault, beyond the usual time of the steps gained by then.
    """

    fault: PlantedFault
    step: int
    lost_s: float


class FaultInjector(RunLogWithSteps):
    """A run log that sends each planted fault's signal when its stage begins, at most once every `STEPS_APART`.

    Attributes:
        pending: faults to come, in order.
        planted: each fault so far, with the last step and the time of the monotonic clock.
        step_ends: number and end of each step, undone ones included.
    """

    STEPS_APART = 3
    pending: list[PlantedFault]

    def __enter__(self) -> Self:
        self._processes_of_others = {process.pid for role in ROLES for process in role_processes(role)}
        self.planted: list[tuple[PlantedFault, int, float]] = []
        self.step_ends: list[tuple[int, float]] = []
        super().__enter__()
        return self

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Time a stage, and plant the next fault if it is due."""
        with super().timed(stage):
            if self.pending and self.pending[0].stage == stage and self._is_due():
                fault = self.pending.pop(0)
                self.planted.append((fault, self.last_step, time.monotonic()))
                threading.Timer(DELAY_S, self._send_signal, [fault]).start()
            yield

    def write_step(self, step: int, metrics: dict[str, float]) -> None:
        """Record a step and its end."""
        super().write_step(step, metrics)
        self.step_ends.append((step, time.monotonic()))

    def effects(self) -> list[FaultEffect]:
        """Cost of each planted fault, by the median time of a step."""
        usual_s = sorted(metrics["perf/step_s"] for metrics in self.steps)[len(self.steps) // 2]
        ends = [(step, when) for _, step, when in self.planted] + self.step_ends[-1:]
        return [
            FaultEffect(fault, step, max(ended - when - (gained - step) * usual_s, 0.0))
            for (fault, step, when), (gained, ended) in zip(self.planted, ends[1:], strict=True)
        ]

    def _is_due(self) -> bool:
        if self.pending[0].stage == "recover":
            return True  # which comes with the fault before
        return self.last_step >= self.STEPS_APART + (self.planted[-1][1] if self.planted else 0)

    def _send_signal(self, fault: PlantedFault) -> None:
        own = [process.pid for process in role_processes(fault.role) if process.pid not in self._processes_of_others]
        os.kill(own[0], fault.signal)


@dataclass
class CampaignReport:
    """Result of a run with planted faults.

    Attributes:
        console: text on the run's console.
        metrics: metrics of each step.
    """

    audit: AuditReport
    effects: list[FaultEffect]
    console: str
    metrics: list[Metrics] = field(default_factory=list)


def choose_faults(seed: int, count: int) -> list[PlantedFault]:
    """A fault of each role at each stage, in random order. Every fourth of a rollout worker is a hang instead of a
    death: only rollout workers are checked for hangs."""
    faults = [PlantedFault(stage, role) for stage in STAGES for role in ROLES]
    rng = random.Random(seed)
    rng.shuffle(faults)
    faults = [faults[i % len(faults)] for i in range(count)]
    return [
        replace(fault, signal=signal.SIGSTOP) if fault.role == "rollout" and rng.random() < 0.25 else fault
        for fault in faults
    ]


def run_with_planted_faults(
    faults: Sequence[PlantedFault],
    *words: str,
    output: Path | None = None,
    rollout_class: type[RolloutWorker] = RolloutWorker,
) -> CampaignReport:
    """Train until some steps after the last fault. Ray must be running.

    Args:
        words: overrides of the config.
    """
    with tempfile.TemporaryDirectory() as folder:
        steps = FaultInjector.STEPS_APART * (len(faults) + 2)
        config: Config = load(DEMO, [*SMALL, f"steps={steps}", f"output_dir={output or folder}", *words])
        model = model_folder(config)
        task = task_of(config)
        text = StringIO()

        async def train(log: FaultInjector) -> None:
            actors = RayActors(config, model, log.note, rollout_class)
            try:
                run = compose_run(config, await actors.start(), task, log)
                await train_with_recovery(run, RunState(), "started")
                run.ledger.close()
            finally:
                actors.stop()

        with FaultInjector(RunFolder.create(config), config.steps, Console(file=text, width=10_000)) as log:
            log.pending = list(faults)
            asyncio.run(train(log))
        assert not log.pending, f"the run ended before these faults were planted: {log.pending}"
        return CampaignReport(audit(log.folder), log.effects(), text.getvalue(), log.steps)
