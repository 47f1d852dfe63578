"""Real engines under fire: processes killed, or stopped in their tracks, at chosen moments of a training run."""

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
from typing import Any

import psutil
from rich.console import Console

from demopsd_dist.config import Config, load
from demopsd_dist.data.sources import load_data
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.run_record.audit import AuditReport, audit
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.training.recovery import train_with_recovery
from demopsd_dist.training.run import RunState
from launch._task import build_task, compose_run
from workers.actors import RayActors

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
STAGES = ("sample", "score", "learn", "publish_weights", "checkpoint")
ROLES = ("rollout", "teacher", "learner")
IN_IT_S = 0.05  # after the stage has begun
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
    stage: str
    role: str
    how: signal.Signals = signal.SIGKILL

    def __str__(self) -> str:
        return f"{self.how.name} of a {self.role} process at {self.stage}"


@dataclass
class FaultEffect:
    blow: PlantedFault
    step: int
    lost_s: float  # until the next blow, beyond what the steps gained by then usually take


class FaultInjector(RunLog):
    """Strikes when a stage begins, at most once every `apart` steps."""

    blows: list[PlantedFault]
    apart = 3

    def __enter__(self) -> FaultInjector:
        self.others = {process.pid for role in ROLES for process in actors(role)}  # of other runs
        self.struck: list[tuple[PlantedFault, int, float]] = []
        self.ends: list[tuple[int, float]] = []
        super().__enter__()
        return self

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        with super().timed(stage):
            if self.blows and self.blows[0].stage == stage and self._rested():
                blow = self.blows.pop(0)
                self.struck.append((blow, self.last_step, time.monotonic()))
                threading.Timer(IN_IT_S, self._strike, [blow]).start()
            yield

    def step(self, step: int, metrics: dict[str, float]) -> None:
        super().step(step, metrics)
        self.ends.append((step, time.monotonic()))

    def _rested(self) -> bool:
        return self.last_step >= self.apart + (self.struck[-1][1] if self.struck else 0)

    def _strike(self, blow: PlantedFault) -> None:
        mine = [process.pid for process in actors(blow.role) if process.pid not in self.others]
        os.kill(mine[0], blow.how)


def actors(role: str) -> list[psutil.Process]:
    """The living processes of this role that are descendants of this one."""
    name = f"ray::{role.capitalize()}Worker"
    return [process for process in psutil.Process().children(recursive=True) if name in command_of(process)]


def command_of(process: psutil.Process) -> str:
    """Its command line; nothing where it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@dataclass
class CampaignReport:
    account: AuditReport
    felt: list[FaultEffect]
    said: str
    metrics: list[dict[str, float]] = field(default_factory=list)


def every_blow(seed: int, count: int) -> list[PlantedFault]:
    """Each role at each stage, in an order of the seed's own; every fourth is a hang instead of a death, where a hang
    is looked for (rollout workers)."""
    blows = [PlantedFault(stage, role) for stage in STAGES for role in ROLES]
    rng = random.Random(seed)
    rng.shuffle(blows)
    blows = [blows[i % len(blows)] for i in range(count)]
    return [
        replace(blow, how=signal.SIGSTOP) if blow.role == "rollout" and rng.random() < 0.25 else blow for blow in blows
    ]


def under_fire(blows: Sequence[PlantedFault], *words: str, output: Path | None = None) -> CampaignReport:
    """A run that goes on until the last blow is some steps behind it. Ray is there already."""
    with tempfile.TemporaryDirectory() as folder:
        steps = FaultInjector.apart * (len(blows) + 2)
        config: Config = load(DEMO, [*SMALL, f"steps={steps}", f"output_dir={output or folder}", *words])
        model = model_folder(config)
        task = build_task(config, model, load_data(config.data).questions)[0]
        console = Console(file=StringIO(), width=10_000)

        async def go(log: FaultInjector) -> Any:
            actors = RayActors(config, model, log.note)
            try:
                run = compose_run(config, await actors.start(), task, log)
                await train_with_recovery(run, RunState(), "started")
                run.ledger.close()
            finally:
                actors.stop()

        with FaultInjector(RunFolder.create(config), config.steps, console) as log:
            log.blows = list(blows)
            asyncio.run(go(log))
        assert not log.blows, f"never struck: {log.blows}"
        usual_s = sorted(metrics["perf/step_s"] for metrics in log.steps)[len(log.steps) // 2]
        marks = [(step, when) for _, step, when in log.struck] + log.ends[-1:]
        felt = [
            FaultEffect(blow, step, max(ended - when - (gained - step) * usual_s, 0.0))
            for (blow, step, when), (gained, ended) in zip(log.struck, marks[1:], strict=True)
        ]
        file = console.file
        assert isinstance(file, StringIO)
        return CampaignReport(audit(log.folder), felt, file.getvalue(), log.steps)
