"""One Ray and one crew of real engines for the whole session; at its end no process of theirs may be left."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray
import torch

from demopsd_dist.config import Config, load
from demopsd_dist.data.sources import load_data
from demopsd_dist.driver import Task
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.roles import Crew
from launch.task import build_task
from workers import cluster
from workers.crew import RayCrew
from workers.weights import Parcel, pack_bucket

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo.yaml"
SMALL = [
    "rollout.cpus_per_worker=0.1",
    "teacher.cpus_per_worker=0.1",
    "learner.cpus_per_worker=0.1",
    "rollout.prompts_per_step=8",
    "data.minisci_test_size=16",
    "data.minisci_train_size=64",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)


def demo(*words: str) -> Config:
    return load(DEMO, [*SMALL, *words])


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    cluster.join(demo())
    ours = psutil.Process().children(recursive=True)
    yield
    cluster.leave()
    left = psutil.wait_procs(ours, timeout=10)[1]
    assert not left, f"still there 10 s after Ray was left: {left}"


@dataclass
class RealCrew:
    config: Config
    actors: RayCrew
    roles: Crew
    version: int = 0  # of the weights last published

    def publish(self) -> None:
        asyncio.run(self.roles.weights.publish(self.version))


@pytest.fixture(scope="session")
def crew(ray_here: None) -> Iterator[RealCrew]:
    config = demo()
    actors = RayCrew(config, MODEL_DIR)
    crew = RealCrew(config, actors, asyncio.run(actors.start()))
    crew.publish()
    yield crew
    actors.stop()


@pytest.fixture(scope="session")
def task() -> Task:
    config = demo()
    return build_task(config, MODEL_DIR, load_data(config.data).questions)[0]


def posted(version: int, *buckets: Iterable[tuple[str, torch.Tensor]]) -> list[ray.ObjectRef]:
    """Parcels of these tensors in the object store, as `receive` takes them."""
    packed = [pack_bucket(version, index, tensors) for index, tensors in enumerate(buckets)]
    return [ray.put(Parcel(bucket.label, ray.put(bucket.data))) for bucket in packed]


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
