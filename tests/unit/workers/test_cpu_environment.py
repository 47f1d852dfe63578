"""Environment variables of the workers, on CPU and on GPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from demopsd_dist.config import Config, load
from workers.cpu_environment import cpu_environment
from workers.learner import worker as learner
from workers.rollout import worker as rollout
from workers.teacher import worker as teacher

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
ROLES = [("rollout", rollout.environment), ("teacher", teacher.environment), ("learner", learner.environment)]


@pytest.mark.parametrize(("role", "environment"), ROLES)
def test_a_role_on_cpu_has_its_threads_huge_pages_and_short_waits(
    role: str, environment: Callable[[Config], dict[str, str]]
) -> None:
    config = load(DEMO, [f"{role}.threads=3"])
    assert environment(config).items() >= {
        ("OMP_NUM_THREADS", "3"),
        ("CUDA_VISIBLE_DEVICES", ""),
        ("THP_MEM_ALLOC_ENABLE", "1"),
        ("GOMP_SPINCOUNT", "1000"),
    }
    on_gpu = environment(load(DEMO, [f"{role}.gpus_per_worker=1"]))
    assert not on_gpu.keys() & {"OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "THP_MEM_ALLOC_ENABLE", "GOMP_SPINCOUNT"}


def test_a_waiting_time_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert cpu_environment(2)["GOMP_SPINCOUNT"] == "7"
