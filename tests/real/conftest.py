"""One Ray and one set of real engines for the whole session; at its end none of their processes may be left."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import ray
import torch

from benchmarks.common.run_processes import end_marked
from demopsd_dist.config import Config, Precision, load
from demopsd_dist.data.sources import load_data
from demopsd_dist.methods import resolve_method
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.run_record.audit import audit
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.training.recovery import train_with_recovery
from demopsd_dist.training.roles import Roles
from demopsd_dist.training.run import RunState, Task
from demopsd_dist.util.errors import LostStateError, LostWorkerError, WorkerError
from launch._task import build_task, compose_run
from workers.actor_group import ActorGroup
from workers.actors import RayActors, start_ranks
from workers.cluster import session
from workers.cluster.placement import Bundle
from workers.cluster.resource_claim import ResourceClaim
from workers.forward import load_causal_lm
from workers.learner import worker as learner
from workers.learner.group import LearnerGroup
from workers.rollout import worker as rollout
from workers.teacher import worker as teacher
from workers.weights.buckets import BucketRef, pack_bucket
from workers.weights.publisher import WeightPublisher

W = TypeVar("W")
ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo.yaml"
SMALL = [
    "model.precision=float32",
    "rollout.cpus_per_worker=0.1",
    "teacher.cpus_per_worker=0.1",
    "learner.cpus_per_worker=0.1",
    "rollout.prompts_per_step=8",
    "data.minisci_test_size=16",
    "data.minisci_train_size=64",
    "evaluation.samples=2",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)


def demo(*words: str) -> Config:
    return load(DEMO, [*SMALL, *words])


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    session.join(demo())
    ours = psutil.Process().children(recursive=True)
    yield
    session.leave()
    left = psutil.wait_procs(ours, timeout=10)[1]
    assert not left, f"still there 10 s after Ray was left: {left}"


def renew(group: ActorGroup[Any], config: Config, folder: Path = MODEL_DIR, **start: Any) -> None:
    """Construct and start the group's workers anew, with these settings, in their old processes.

    A new process spends more time on its imports than a worker on its start. The number of ranks stays.
    """

    def make(worker: Any, rank: int) -> None:
        vars(worker).clear()
        gc.collect()
        worker.__init__(rank, config, folder)

    async def again() -> None:
        await group.each(lambda worker, rank: worker.run(make, rank), within_s=60, what="a new worker")
        if group.role == "learner":
            await start_ranks(group, 120, "a start")
        elif group.role == "rollout":
            await group.each(
                lambda worker, _: worker(rollout.RolloutWorker.start, **start), within_s=120, what="a start"
            )
        else:
            await group.each(lambda worker, _: worker(teacher.TeacherWorker.start), within_s=120, what="a start")

    asyncio.run(again())


@dataclass
class RealRoles:
    config: Config
    actors: RayActors
    roles: Roles
    version: int = 0  # of the weights last published

    def publish(self) -> None:
        asyncio.run(self.roles.weights.publish(self.version))

    @property
    def learners(self) -> ActorGroup[learner.LearnerWorker]:
        return self.actors._learners

    def restart(self, config: Config | None = None) -> None:
        """Load the learners from the model folder, and publish their weights, version 0, to all roles."""
        renew(self.learners, config or self.config)
        publisher = self.roles.weights
        assert isinstance(publisher, WeightPublisher)
        asyncio.run(publisher.start())
        self.version = 0
        self.publish()


@pytest.fixture(scope="session")
def roles(ray_here: None) -> Iterator[RealRoles]:
    config = demo()
    actors = RayActors(config, MODEL_DIR)
    roles = RealRoles(config, actors, asyncio.run(actors.start()))
    roles.publish()
    yield roles
    actors.stop()


class WatchedRollouts(rollout.RolloutWorker):
    async def unfinished(self) -> int:
        return self._engine.get_num_unfinished_requests()

    async def block_size(self) -> int:
        return self._engine.vllm_config.cache_config.block_size


@dataclass
class Spares:
    """Processes for tests that need workers with other settings: `renew` them first."""

    rollout: ActorGroup[WatchedRollouts]
    teacher: ActorGroup[teacher.TeacherWorker]
    learner: ActorGroup[learner.LearnerWorker]  # one rank


@pytest.fixture(scope="session")
def spares(ray_here: None) -> Iterator[Spares]:
    config = demo("learner.num_workers=1")
    claim = ResourceClaim([Bundle(role, 0, 0.1, 0) for role in ("rollout", "teacher", "learner")])

    def spawn(role: str, worker_class: type[W], env: dict[str, str], lost_error: type[WorkerError]) -> ActorGroup[W]:
        return claim.spawn_group(role, worker_class, lambda rank: (rank, config, MODEL_DIR), env, lost_error)

    spares = Spares(
        rollout=spawn("rollout", WatchedRollouts, rollout.environment(config), LostWorkerError),
        teacher=spawn("teacher", teacher.TeacherWorker, teacher.environment(config), LostStateError),
        learner=spawn("learner", learner.LearnerWorker, learner.environment(config), LostStateError),
    )
    yield spares
    for group in (spares.rollout, spares.teacher, spares.learner):
        group.kill()
    claim.release()


class Ranks:
    """Learners without the other roles: one rank, or two."""

    def __init__(self, one: ActorGroup[learner.LearnerWorker], two: ActorGroup[learner.LearnerWorker]) -> None:
        self._groups = {1: one, 2: two}

    def config(self, *words: str) -> Config:
        return demo("learner.learning_rate=3e-4", "learner.warmup_steps=0", *words)

    def start(self, *words: str, folder: Path = MODEL_DIR) -> LearnerGroup:
        return self.start_with(self.config(*words), folder)

    def start_with(self, config: Config, folder: Path = MODEL_DIR) -> LearnerGroup:
        group = self._groups[config.learner.num_workers]
        renew(group, config, folder)
        return LearnerGroup(group, config, resolve_method(config))


@pytest.fixture(scope="module")
def ranks(roles: RealRoles, spares: Spares) -> Iterator[Ranks]:
    yield Ranks(spares.learner, roles.learners)
    roles.restart()


@pytest.fixture(scope="session")
def task() -> Task:
    config = demo()
    return build_task(config, MODEL_DIR, load_data(config.data).questions)[0]


def go_through(config: Config, roles: Roles, task: Task, log: RunLog) -> RunState:
    """Run the whole loop from the beginning, and check that its ledger adds up."""
    run = compose_run(config, roles, task, log)
    try:
        state = asyncio.run(train_with_recovery(run, RunState(), "started"))
    finally:
        run.ledger.close()
    assert audit(log.folder).faults == []
    return state


def posted(version: int, *buckets: Iterable[tuple[str, torch.Tensor]]) -> list[ray.ObjectRef]:
    """Bucket references of these tensors in the object store, as `receive` takes them."""
    packed = [pack_bucket(version, index, tensors) for index, tensors in enumerate(buckets)]
    return [ray.put(BucketRef(bucket.header, ray.put(bucket.data))) for bucket in packed]


def moved_model() -> Any:
    """MiniSci's model with every weight moved a little, the same in every call."""
    model = load_causal_lm(MODEL_DIR, Precision.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def engine_processes(parent: psutil.Process | None = None) -> list[psutil.Process]:
    """Processes of engines with `tensor_parallel`: children of `parent`, or all on this machine."""
    found = []
    for process in psutil.process_iter() if parent is None else parent.children():
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE and process.name().startswith("VLLM::Worker"):
                found.append(process)
    return found


def refuse_left(mark: str, within_s: float = 15) -> None:
    """Fail if a process with this mark is left after a while, and kill it."""
    left = end_marked(mark, within_s)
    assert not left, f"still there: {left}"
