"""Simulated roles that fail at random: rollout workers, teacher, learners, and checkpoints on disk."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chaos.local_actors import LocalActor, LocalClaim
from benchmarks.common.simulated_roles import SimulatedLearners, SimulatedTeacher, simulated_responses
from demopsd_dist.data.records import Prompt, Rollout, ScoredExample, StepReport, TrainBatch, TrainingExample
from demopsd_dist.run_record.checkpoints import Checkpoints
from demopsd_dist.training.roles import Sampling
from demopsd_dist.util.errors import LostStateError, LostWorkerError
from workers.actor_handle import Handle
from workers.rollout.dispatch import RolloutWorkers
from workers.rollout.pool import RolloutPool
from workers.rollout.worker import RolloutWorker

SILENCE_S = 0.04
"""Time limit after which a silent worker counts as hanging (`limits.silence_s`)."""
WORKER_FAULTS = ("crash", "hang", "slow", "duplicate", "other prompt", "not a number", "late")
LEARNER_FAULTS = ("learner crash", "torn checkpoint", "driver kill")


class DriverKilledError(BaseException):
    """Stand-in for SIGKILL of the driver: no handler catches it."""


@dataclass
class FaultPlan:
    """Random choice of faults and of their times, until `left` faults have been planted.

    Attributes:
        planted: faults so far, by kind.
    """

    rng: random.Random
    left: int
    planted: Counter[str] = field(default_factory=Counter)

    def draw(self, kinds: Sequence[str], chance: float) -> str | None:
        """Choose a fault of these kinds with this probability; None for no fault."""
        if not self.left or self.rng.random() >= chance:
            return None
        self.left -= 1
        kind = self.rng.choice(kinds)
        self.planted[kind] += 1
        return kind


class FaultyEngine:
    """A rollout worker without an engine, with `WORKER_FAULTS` when it samples."""

    def __init__(self, rank: int, plan: FaultPlan) -> None:
        self.rank, self._plan, self._version, self._progress = rank, plan, 0, itertools.count()
        self._hanging = False
        self._last: list[list[Rollout]] = []
        self.actor: LocalActor | None = None

    async def import_libraries(self) -> None:
        """Do nothing: there is no engine."""

    async def start(self, *, random_weights: bool = False) -> None:
        """Start at once."""
        await asyncio.sleep(0)

    async def mark_version(self, version: int) -> None:
        """Label later responses with this version of the weights."""
        self._version = version

    async def progress(self) -> int:
        """A number that grows with every call, unless the worker hangs."""
        return 0 if self._hanging else next(self._progress)

    async def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        """Return a group for each prompt, or fail in one of the ways of `WORKER_FAULTS`."""
        version = self._version
        await asyncio.sleep(self._plan.rng.random() * 0.002)
        groups = [simulated_responses(prompt, sampling, version, self.rank) for prompt in prompts]
        before, self._last = self._last or groups, groups
        match self._plan.draw(WORKER_FAULTS, 0.1):
            case "crash":
                assert self.actor is not None
                self.actor.kill()
            case "hang":
                self._hanging = True
                await asyncio.sleep(3600)
            case "slow":
                await asyncio.sleep(1.5 * SILENCE_S)
            case "duplicate":
                return groups + groups
            case "other prompt":
                return [[replace(rollout, prompt=_other(rollout.prompt)) for rollout in group] for group in before]
            case "not a number":
                bad = [replace(rollout, logp_T=np.full_like(rollout.logp_T, np.nan)) for rollout in groups[0]]
                return [bad, *groups[1:]]
            case "late":  # by then the driver has replaced the worker and ignores its answer
                self._hanging = True
                await asyncio.sleep(6 * SILENCE_S)
        return groups


def _other(prompt: Prompt) -> Prompt:
    return replace(prompt, question=replace(prompt.question, id=f"another than {prompt.id}"))


class LocalPool(RolloutPool):
    """The real pool of rollout workers, with objects instead of processes."""

    plan: FaultPlan

    def _claim(self, rank: int) -> Any:
        return LocalClaim(rank)

    def _spawn(self, claim: Any) -> dict[int, Handle[RolloutWorker]]:
        engine = FaultyEngine(claim.rank, self.plan)
        engine.actor = LocalActor(engine)
        return {claim.rank: engine.actor}


@dataclass
class FaultyWeights:
    """A publisher of version numbers; a worker that is lost meanwhile is replaced."""

    pool: RolloutPool
    version: int = 0

    async def publish(self, version: int, *, changed: bool = True) -> None:
        """Mark the version in every rollout worker."""
        self.version = version
        for rank in self.pool.group.ranks:
            try:
                await self.pool.call(rank, lambda worker: worker(RolloutWorker.mark_version, version), what="a version")
            except LostWorkerError as error:
                self.pool.report_lost_worker(rank, error)

    async def sync_new_worker(self, new_worker: RolloutWorkers, serve: Callable[[], None]) -> None:
        """Mark the current version in a worker that joins, and let it serve."""
        await new_worker.each(
            lambda worker, _: worker(RolloutWorker.mark_version, self.version), within_s=10, what="a version"
        )
        serve()


@dataclass
class FaultyTeacher(SimulatedTeacher):
    """A teacher that dies in one of fifty calls."""

    plan: FaultPlan = field(kw_only=True)

    async def score(self, examples: Sequence[TrainingExample], supports_TK: Any, forwards: Any) -> list[ScoredExample]:
        """Score the examples, or die."""
        if self.plan.draw(["teacher crash"], 0.02):
            raise LostStateError("teacher 0 died.")
        return await super().score(examples, supports_TK, forwards)


@dataclass
class FaultyLearners(SimulatedLearners):
    """Learners with `LEARNER_FAULTS` at their steps.

    Attributes:
        checkpoints: the run's folder of checkpoints.
        learned: samples and privileged contexts of each step; for a repeated step, those of its last run.
    """

    plan: FaultPlan = field(kw_only=True)
    checkpoints: Path = field(kw_only=True)
    learned: dict[int, list[tuple[str, bytes]]] = field(kw_only=True)
    steps: int = 0

    async def step(self, batch: TrainBatch) -> StepReport:
        """Note the batch, or fail in one of the ways of `LEARNER_FAULTS`."""
        match self.plan.draw(LEARNER_FAULTS, 0.15):
            case "learner crash":
                raise LostStateError("learner 0 died.")
            case "driver kill":
                raise DriverKilledError
            case "torn checkpoint":
                self._tear_checkpoint()
        self.steps += 1
        self.learned[self.steps] = sorted((item.id, item.example.privileged_tokens.tobytes()) for item in batch.items)
        return await super().step(batch)

    async def save(self, folder: Path) -> None:
        """Save the number of steps."""
        await super().save(folder)
        (folder / "steps").write_text(f"{self.steps}")

    async def load(self, folder: Path) -> None:
        """Load the number of steps."""
        self.steps = int((folder / "steps").read_text())

    def _tear_checkpoint(self) -> None:
        """Cut a file of the newest checkpoint in half, as a crash of the machine may do."""
        for checkpoint in Checkpoints(self.checkpoints, keep=0).all()[:1]:
            file = self.plan.rng.choice([path for path in checkpoint.path.rglob("*") if path.is_file()])
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
