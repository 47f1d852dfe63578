"""Simulated step times beside the planner's: the real driver with roles that sleep for the planned seconds, on a clock
that skips waits. No engine is measured; the comparison checks how the planner combines the stages."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.common.simulated_roles import TOP_K, Stateless, simulated_responses, zero_logp, zero_support
from benchmarks.common.timed_runs import task_of
from demopsd_dist.config import load
from demopsd_dist.data.records import (
    Logp,
    Prompt,
    Rollout,
    ScoredExample,
    StepReport,
    Tokens,
    TrainBatch,
    TrainingExample,
)
from demopsd_dist.methods import Forwards
from demopsd_dist.planning.hardware import parse_cluster
from demopsd_dist.planning.model_shape import shape_of
from demopsd_dist.planning.roofline import STAGES
from demopsd_dist.planning.step_time import step_seconds
from demopsd_dist.planning.workload import Split, Traffic, workload_of
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.training.recovery import train_with_recovery
from demopsd_dist.training.roles import Roles, Sampling
from demopsd_dist.training.run import RunState, Task
from launch._task import compose_run

RUNS = (
    (10, 1, 4, 6, 1, 0.1),
    (10, 1, 8, 6, 1, 0.1),
    (5, 1, 2, 12, 1, 0.1),
    (5, 2, 6, 12, 1, 0.1),
    (4, 1, 14, 6, 2, 0.1),
)
"""Seconds of sample, support, score, learn, publish and driver."""
DONE = {
    "at once": [1.0] * 8,
    "evenly": [(i + 1) / 8 for i in range(8)],
    "one late": [0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 1.0],
}
FIVE_GPUS = parse_cluster("5xh100")  # one for each worker
DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


class SkippingClock(selectors.SelectSelector):
    """Selector that moves the clock forward instead of waiting for a timer."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:  # a thread is at work, and no timer is set
            return super().select(None)
        events = super().select(0)
        if not events:
            self.now += max(timeout, 0.0)
        return events


class SkippingEventLoop(asyncio.SelectorEventLoop):
    """Event loop on a skipping clock."""

    def __init__(self) -> None:
        self._clock = SkippingClock()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


@dataclass
class WorkerLocks:
    """Locks of the worker groups; on shared devices all roles share one."""

    rollouts: asyncio.Lock = field(default_factory=asyncio.Lock)
    teacher: asyncio.Lock = field(default_factory=asyncio.Lock)
    learners: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    def for_split(cls, split: Split) -> WorkerLocks:
        one = asyncio.Lock()
        return cls(one, one, one) if split.shared else cls()


@dataclass
class SleepingRoles(Stateless):
    """Stand-ins for all four roles that sleep for the planned seconds."""

    seconds: Mapping[str, float]
    done: Sequence[float]  # shares of a batch's sampling time at which groups are done
    samples: int
    locks: WorkerLocks
    waits: bool  # a publish waits for responses that are being sampled
    dp_size: int = 8
    version: int = 0
    ends: list[float] = field(default_factory=list)  # times at which publishes ended

    async def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncIterator[tuple[int, list[Rollout]]]:
        async with self.locks.rollouts:
            started, version = asyncio.get_running_loop().time(), self.version
            for index, (prompt, share) in enumerate(zip(prompts, self.done, strict=True)):
                end = started + share * self.seconds["sample"]
                await asyncio.sleep(max(0.0, end - asyncio.get_running_loop().time()))
                yield index, simulated_responses(prompt, sampling, version, 0)

    async def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        return [group async for _, group in self.stream(prompts, sampling)]

    def metrics(self) -> dict[str, float]:
        return {}

    async def support(self, examples: Sequence[TrainingExample]) -> list[Tokens]:
        async with self.locks.learners:
            await asyncio.sleep(self.seconds["support"] * len(examples) / self.samples)
        return zero_support(examples)

    async def logp(
        self, examples: Sequence[TrainingExample], supports_TK: Sequence[Tokens] | None, top_k: int
    ) -> list[tuple[Tokens, Logp]]:
        return zero_logp(examples, supports_TK)

    async def score(
        self, examples: Sequence[TrainingExample], supports_TK: Sequence[Tokens] | None, forwards: Forwards
    ) -> list[ScoredExample]:
        assert supports_TK is not None
        async with self.locks.teacher:
            await asyncio.sleep(self.seconds["score"] * len(examples) / self.samples)
        return [
            ScoredExample(example, support_TK, *2 * [np.zeros((len(support_TK), TOP_K + 1), np.float32)])
            for example, support_TK in zip(examples, supports_TK, strict=True)
        ]

    async def step(self, batch: TrainBatch) -> StepReport:
        async with self.locks.learners:
            await asyncio.sleep(self.seconds["learn"] + self.seconds["driver"])
        return StepReport({"learner/loss": 0.0}, stepped=True)

    async def publish(self, version: int, *, changed: bool = True) -> None:
        if self.waits:
            async with self.locks.rollouts:
                await asyncio.sleep(self.seconds["publish"])
        else:
            await asyncio.sleep(self.seconds["publish"])
        self.version = version
        self.ends.append(asyncio.get_running_loop().time())

    async def export(self, folder: Path) -> None:
        raise NotImplementedError("there is no model to export")


def simulated_step(
    split: Split, seconds: Mapping[str, float], done: Sequence[float], task: Task, *, waits: bool, steps: int = 30
) -> float:
    """Seconds from one publish to the next in a run of the driver, after warm-up."""
    words = [f"steps={steps}", f"rollout.ahead={split.ahead}", f"rollout.prompts_per_step={len(done)}"]
    words += ["evaluation.at_start=false", "leakage.every_steps=0", "checkpoint.every_steps=0"]
    config = load(DEMO, words)
    loop = SkippingEventLoop()

    async def run(log: RunLog) -> SleepingRoles:
        samples = len(done) * config.rollout.group_size
        sleeping = SleepingRoles(seconds, done, samples, WorkerLocks.for_split(split), waits)
        roles = Roles(sleeping, sleeping, sleeping, sleeping, restart=never)
        simulated = compose_run(config, roles, replace(task, test=[], ood=[]), log)
        await train_with_recovery(simulated, RunState(), "started")
        simulated.ledger.close()
        return sleeping

    with TemporaryDirectory() as folder:
        path = RunFolder.create(replace(config, output_dir=folder))
        with RunLog(path, steps, Console(file=StringIO())) as log:
            try:
                ends = loop.run_until_complete(run(log)).ends
            finally:
                loop.close()
    counted = ends[8 : steps - split.ahead]  # without the first steps and the last, beside which nothing is sampled
    return (counted[-1] - counted[0]) / (len(counted) - 1)


def simulations() -> Iterator[dict[str, Any]]:
    """Rows of simulated and planned step times, for runs with stages of different lengths."""
    task = task_of(load(DEMO, ["data.minisci_train_size=256"]))
    workload = workload_of(load(DEMO), shape_of("minisci"), Traffic())
    for stages in RUNS:
        seconds = dict(zip(STAGES, stages, strict=True))
        for name, done in DONE.items():
            for ahead, waits in ((0, True), (1, True), (1, False)):
                split = Split(2, 1, 2, ahead)
                variant = replace(workload, waits_on_publish=waits)
                yield {
                    "seconds": seconds,
                    "done": name,
                    "ahead": ahead,
                    "on_publish": "wait" if waits else "keep",
                    "simulated_s": simulated_step(split, seconds, done, task, waits=waits),
                    "planned_s": step_seconds(variant, split, FIVE_GPUS, seconds, tuple(done)),
                }


async def never() -> None:
    raise AssertionError("a restart was called for, and simulated workers never fail")
