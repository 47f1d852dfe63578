"""Faults by the hundred on simulated engines, in one process: no figure here is a measurement of an engine.

Real: the driver, the hand-over of prompts, the supervision and replacement of workers, the ledger, the checkpoints,
the resume. Simulated: the processes. An actor is an object, its death an error, and a killed driver one whose run is
dropped where it stands, without a word to the ledger.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from ray.exceptions import RayActorError
from rich.console import Console

from benchmarks.common.simulated_roles import SimulatedLearners, SimulatedTeacher, StageTimes, simulated_responses
from demopsd_dist.config import Config, load
from demopsd_dist.data.records import Prompt, Rollout, ScoredExample, StepReport, TrainBatch, TrainingExample
from demopsd_dist.run_record.audit import AuditReport, audit
from demopsd_dist.run_record.checkpoints import Checkpoints
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.training.checkpointing import restore
from demopsd_dist.training.recovery import train_with_recovery
from demopsd_dist.training.roles import Roles, Sampling
from demopsd_dist.training.run import RunState, Task
from demopsd_dist.util.errors import LostStateError, LostWorkerError
from launch._task import compose_run
from workers.actor_handle import Handle, Ref
from workers.rollout.dispatch import RolloutWorkers
from workers.rollout.group import RolloutGroup
from workers.rollout.pool import RolloutPool
from workers.rollout.worker import RolloutWorker

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
AT_ONCE = StageTimes(group_s=0, deviation=0, score_s=0, learn_s=0, publish_s=0)
SILENCE_S = 0.04
OF_A_WORKER = ("crash", "hang", "slow", "duplicate", "other prompt", "not a number", "late")
OF_A_STEP = ("learner crash", "teacher crash", "torn checkpoint", "driver kill")
WORDS = (
    "rollout.num_workers=3",
    "rollout.prompts_per_step=6",
    "rollout.group_size=4",
    "data.minisci_train_size=64",
    "data.test=null",
    "data.ood=null",
    "leakage.every_steps=0",
    "samples.every_steps=0",
    "checkpoint.every_steps=3",
    "checkpoint.keep=3",
    f"limits.silence_s={SILENCE_S}",
    "limits.attempts=100",  # chance alone may strike the same prompt several times
    "limits.restarts=100",
)


class DriverKilledError(BaseException):
    """Nobody catches this, as nobody survives SIGKILL."""


@dataclass
class FaultPlan:
    """Which faults strike, and when: drawn from a seed until `left` are used up."""

    rng: random.Random
    left: int
    struck: Counter[str] = field(default_factory=Counter)

    def draw(self, kinds: Sequence[str], chance: float) -> str | None:
        if not self.left or self.rng.random() >= chance:
            return None
        self.left -= 1
        kind = self.rng.choice(kinds)
        self.struck[kind] += 1
        return kind


class LocalRef:
    """Reference to the result of a call in this process: as much of an object reference as `ActorGroup` uses."""

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        self._result: Future[Any] = Future()
        self._task = asyncio.ensure_future(work)
        self._task.add_done_callback(self._done)

    def future(self) -> Future[Any]:
        return self._result

    def fail(self, error: BaseException) -> None:
        if not self._result.done():
            self._result.set_exception(error)
        self.cancel()

    def cancel(self) -> None:
        self._task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        if self._result.done() or task.cancelled():
            return
        if error := task.exception():
            self._result.set_exception(error)
        else:
            self._result.set_result(task.result())


class LocalActor(Handle[RolloutWorker]):
    """Handle of an actor whose calls run in this process."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine = engine
        self._calls: list[LocalRef] = []
        self._dead = False

    def __call__(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Ref[Any]:
        ref = LocalRef(getattr(self._engine, method.__name__)(*args, **kwargs))
        if self._dead:
            ref.fail(RayActorError())
        self._calls = [call for call in self._calls if not call.future().done()] + [ref]
        return ref

    def cancel(self, ref: Ref[Any]) -> None:
        assert isinstance(ref, LocalRef)
        ref.cancel()

    def kill(self) -> None:
        self._dead = True
        for call in self._calls:
            call.fail(RayActorError())


class SimulatedEngine:
    """A rollout worker, and what may go wrong with it."""

    def __init__(self, rank: int, fate: FaultPlan) -> None:
        self.rank, self._fate, self._version, self._progress = rank, fate, 0, itertools.count()
        self._hanging = False
        self._last: list[list[Rollout]] = []
        self.actor: LocalActor | None = None

    async def start(self, *, blank: bool = False) -> None:
        await asyncio.sleep(0)

    async def mark_version(self, version: int) -> None:
        self._version = version

    async def progress(self) -> int:
        return 0 if self._hanging else next(self._progress)

    async def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        version = self._version
        await asyncio.sleep(self._fate.rng.random() * 0.002)
        found = [simulated_responses(prompt, sampling, version, self.rank) for prompt in prompts]
        before, self._last = self._last or found, found
        match self._fate.draw(OF_A_WORKER, 0.1):
            case "crash":
                assert self.actor is not None
                self.actor.kill()
            case "hang":
                self._hanging = True
                await asyncio.sleep(3600)
            case "slow":
                await asyncio.sleep(1.5 * SILENCE_S)
            case "duplicate":
                return found + found
            case "other prompt":
                return [[replace(rollout, prompt=_other(rollout.prompt)) for rollout in group] for group in before]
            case "not a number":
                bad = [replace(rollout, logp_T=np.full_like(rollout.logp_T, np.nan)) for rollout in found[0]]
                return [bad, *found[1:]]
            case "late":  # by then it has been given up, and nobody listens
                self._hanging = True
                await asyncio.sleep(6 * SILENCE_S)
        return found


def _other(prompt: Prompt) -> Prompt:
    return replace(prompt, question=replace(prompt.question, id=f"another than {prompt.id}"))


class LocalPool(RolloutPool):
    """The real pool, with objects for processes."""

    fate: FaultPlan

    def _claim(self, rank: int) -> Any:
        return LocalClaim(rank)

    def _spawn(self, claim: Any) -> dict[int, Handle[RolloutWorker]]:
        engine = SimulatedEngine(claim.rank, self.fate)
        engine.actor = LocalActor(engine)
        return {claim.rank: engine.actor}


@dataclass
class LocalClaim:
    rank: int

    async def ready(self, within_s: float) -> None:
        await asyncio.sleep(0)

    def release(self) -> None:
        pass


@dataclass
class FaultyWeights:
    pool: RolloutPool
    version: int = 0

    async def publish(self, version: int, *, moved: bool = True) -> None:
        self.version = version
        for rank in self.pool.group.ranks:
            try:
                await self.pool.call(rank, lambda worker: worker(RolloutWorker.mark_version, version), what="a version")
            except LostWorkerError as error:
                self.pool.report_loss(rank, error)

    async def sync_new_worker(self, new_worker: RolloutWorkers, serve: Callable[[], None]) -> None:
        await new_worker.each(
            lambda worker, _: worker(RolloutWorker.mark_version, self.version), within_s=10, what="a version"
        )
        serve()


@dataclass
class FaultyTeacher(SimulatedTeacher):
    fate: FaultPlan = field(kw_only=True)

    async def score(self, examples: Sequence[TrainingExample], supports_TK: Any, forwards: Any) -> list[ScoredExample]:
        if self.fate.draw(["teacher crash"], 0.02):
            raise LostStateError("teacher 0 died.")
        return await super().score(examples, supports_TK, forwards)


@dataclass
class FaultyLearners(SimulatedLearners):
    fate: FaultPlan = field(kw_only=True)
    checkpoints: Path = field(kw_only=True)
    learned: dict[int, list[tuple[str, bytes]]] = field(kw_only=True)  # by step, the last time it was done
    steps: int = 0

    async def step(self, batch: TrainBatch) -> StepReport:
        match self.fate.draw(OF_A_STEP[::2] + OF_A_STEP[3:], 0.15):
            case "learner crash":
                raise LostStateError("learner 0 died.")
            case "driver kill":
                raise DriverKilledError
            case "torn checkpoint":
                self._tear()
        self.steps += 1
        self.learned[self.steps] = sorted((item.id, item.example.privileged_tokens.tobytes()) for item in batch.items)
        return await super().step(batch)

    async def save(self, folder: Path) -> None:
        await super().save(folder)
        (folder / "steps").write_text(f"{self.steps}")

    async def load(self, folder: Path) -> None:
        self.steps = int((folder / "steps").read_text())

    def _tear(self) -> None:
        """Half of a file of the newest checkpoint is gone, as after a crash of the machine."""
        for checkpoint in Checkpoints(self.checkpoints, keep=0).all()[:1]:
            file = self.fate.rng.choice([path for path in checkpoint.path.rglob("*") if path.is_file()])
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@dataclass
class Outcome:
    seed: int
    struck: Counter[str]
    account: AuditReport
    learned: dict[int, list[tuple[str, bytes]]]
    seconds: float


def survive(faults: int, seed: int, task: Task, output: Path, steps: int, ahead: int = 0) -> Outcome:
    """One run through so many faults, resumed as often as its driver is killed.

    Raises:
        TimeoutError: it hangs.
    """
    started = time.monotonic()
    words = [*WORDS, f"steps={steps}", f"rollout.ahead={ahead}", f"output_dir={output}", f"name=seed-{seed}"]
    config = load(DEMO, words)
    folder = RunFolder.create(config)
    fate = FaultPlan(random.Random(seed), faults)
    learned: dict[int, list[tuple[str, bytes]]] = {}
    while not asyncio.run(asyncio.wait_for(_life(config, folder, task, fate, learned), 600)):
        pass
    return Outcome(seed, fate.struck, audit(folder), learned, time.monotonic() - started)


async def _life(
    config: Config, folder: RunFolder, task: Task, fate: FaultPlan, learned: dict[int, list[tuple[str, bytes]]]
) -> bool:
    """Until the end, or until the driver is killed: then False."""
    pool = LocalPool(config, folder.path, blank=True, say=lambda text: None)
    pool.fate = fate
    weights = FaultyWeights(pool)
    pool.sync_new_worker = weights.sync_new_worker
    learners = FaultyLearners(AT_ONCE, fate=fate, checkpoints=folder.checkpoints, learned=learned)

    async def restart() -> None:
        learners.steps = 0

    await pool.start()
    teacher = FaultyTeacher(AT_ONCE, examples_per_step=1, fate=fate)
    roles = Roles(RolloutGroup(pool, config), teacher, learners, weights, restart)
    with RunLog(folder, config.steps, Console(file=StringIO())) as log:
        run = compose_run(config, roles, task, log)
        state = RunState()
        if folder.metrics.stat().st_size:
            state = await restore(run, run.checkpoints.newest_good(log.note))
        try:
            await train_with_recovery(run, state, f"life after step {state.step}")
        except DriverKilledError:
            return False
        finally:
            pool.stop()
        run.ledger.close()
    return True
