"""One Ray and one roles of real engines for the whole session; at its end no process of theirs may be left."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from demopsd_dist.config import Config, Precision, load
from demopsd_dist.data.sources import load_data
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.run_record.audit import audit
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.training.loop import train_with_recovery
from demopsd_dist.training.roles import Roles
from demopsd_dist.training.run import RunState, Task
from launch._task import build_task, run_of
from workers.actor_group import ActorGroup, ResourceClaim
from workers.actors import LearnerGroup, RayActors, start_ranks
from workers.cluster import session
from workers.cluster.placement import Bundle
from workers.forward import load_causal_lm
from workers.learner import worker as learner
from workers.rollout import worker as rollout
from workers.teacher import worker as teacher
from workers.weights.buckets import BucketRef, pack_bucket
from workers.weights.publisher import WeightPublisher

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo.yaml"
SMALL = [
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


def renew(group: ActorGroup, config: Config, folder: Path = MODEL_DIR, **start: Any) -> None:
    """The group's workers as if just made and started, with these settings, in the processes that are there.

    A new process spends more time on its imports than a worker on its start. The number of ranks stays.
    """

    def make(worker: Any, rank: int) -> None:
        vars(worker).clear()
        gc.collect()
        worker.__init__(rank, config, folder)

    async def again() -> None:
        await group.each(lambda worker, rank: worker.__ray_call__.remote(make, rank), within_s=60, what="a new worker")
        if group.role == "learner":
            await start_ranks(group, 120, "a start")
        else:
            await group.each(lambda worker, _: worker.start.remote(**start), within_s=120, what="a start")

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
    def learners(self) -> ActorGroup:
        return self.actors._learners

    def restart(self, config: Config | None = None) -> None:
        """Learners from the model folder, and their weights, version 0, in all roles."""
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


@dataclass
class Spares:
    """Processes for tests that need workers with other settings: `renew` them first."""

    rollout: ActorGroup
    teacher: ActorGroup
    learner: ActorGroup  # one rank


@pytest.fixture(scope="session")
def spares(ray_here: None) -> Iterator[Spares]:
    config = demo("learner.num_workers=1")
    roles = {
        "rollout": (WatchedRollouts, rollout.environment(config)),
        "teacher": (teacher.TeacherWorker, teacher.environment(config)),
        "learner": (learner.LearnerWorker, learner.environment(config)),
    }
    placement = ResourceClaim([Bundle(role, 0, 0.1, 0) for role in roles])
    groups = {
        role: placement.start(role, actor, lambda rank: (rank, config, MODEL_DIR), variables)
        for role, (actor, variables) in roles.items()
    }
    yield Spares(**groups)
    for group in groups.values():
        group.kill()
    placement.release()


class Ranks:
    """Learners without the other roles: one rank, or two."""

    def __init__(self, one: ActorGroup, two: ActorGroup) -> None:
        self._groups = {1: one, 2: two}

    def start(self, *words: str, folder: Path = MODEL_DIR) -> LearnerGroup:
        config = demo("learner.learning_rate=3e-4", "learner.warmup_steps=0", *words)
        group = self._groups[config.learner.num_workers]
        renew(group, config, folder)
        return LearnerGroup(group, config)


@pytest.fixture(scope="module")
def ranks(roles: RealRoles, spares: Spares) -> Iterator[Ranks]:
    yield Ranks(spares.learner, roles.learners)
    roles.restart()


@pytest.fixture(scope="session")
def task() -> Task:
    config = demo()
    return build_task(config, MODEL_DIR, load_data(config.data).questions)[0]


def go_through(config: Config, roles: Roles, task: Task, log: RunLog) -> RunState:
    """The whole loop, from the beginning; the account of it adds up."""
    run = run_of(config, roles, task, log)
    try:
        state = asyncio.run(train_with_recovery(run, RunState(), "started"))
    finally:
        run.ledger.close()
    assert audit(log.folder).faults == []
    return state


def posted(version: int, *buckets: Iterable[tuple[str, torch.Tensor]]) -> list[ray.ObjectRef]:
    """Parcels of these tensors in the object store, as `receive` takes them."""
    packed = [pack_bucket(version, index, tensors) for index, tensors in enumerate(buckets)]
    return [ray.put(BucketRef(bucket.label, ray.put(bucket.data))) for bucket in packed]


def moved_model() -> Any:
    """MiniSci's, every weight a little off: always the same."""
    model = load_causal_lm(MODEL_DIR, Precision.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def engine_processes(parent: psutil.Process | None = None) -> list[psutil.Process]:
    """Of engines with `tensor_parallel`: children of this process, or whoever has them now."""
    found = []
    for process in psutil.process_iter() if parent is None else parent.children():
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE and process.name().startswith("VLLM::Worker"):
                found.append(process)
    return found


def refuse_left(mark: str, within_s: float = 15) -> None:
    """No process with this mark may be there any more after a while; what is, is killed, and a failure."""
    give_up = time.monotonic() + within_s
    while marked(mark) and time.monotonic() < give_up:
        time.sleep(0.5)
    left = marked(mark)
    for process in left:
        process.kill()
    assert not left, f"still there: {left}"


def marked(mark: str) -> list[psutil.Process]:
    """Living processes that inherited the environment variable DEMOPSD_TEST_MARK=mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DEMOPSD_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return [process for process in found if process.pid != os.getpid()]
