"""Rollout workers that the start of a run does not wait for: they join later, or it is said why they do not.

Simulated: the cluster grants resources when the test says so, and an engine's start is a line of the test. The pool is
the real one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from demopsd_dist.config import load
from demopsd_dist.util.errors import ConfigError, WorkerError
from workers.cluster.resource_claim import ClaimTimeoutError, ResourceClaim
from workers.rollout.pool import RolloutPool

DEMO = Path(__file__).parents[4] / "configs" / "demo.yaml"
START_S = 0.8


class DelayedClaim(ResourceClaim):
    """Claim that is granted once `granted` is set."""

    def __init__(self, granted: asyncio.Event) -> None:
        self._granted, self.is_released = granted, False

    async def ready(self, within_s: float) -> None:
        try:
            await asyncio.wait_for(self._granted.wait(), within_s)
        except TimeoutError:
            raise ClaimTimeoutError("the cluster did not place it") from None

    def release(self) -> None:
        self.is_released = True


class PoolOnPaper(RolloutPool):
    """Pool of four workers, one of them needed at the start, whose claims and engines are simulated.

    Args:
        starts: an engine's start by rank; it serves at once where there is none.
    """

    def __init__(self, said: list[str], starts: dict[int, Callable[[], Awaitable[None]]]) -> None:
        words = ["rollout.num_workers=4", "rollout.min_workers=1", f"limits.start_s={START_S}", "limits.restarts=1"]
        super().__init__(load(DEMO, words), Path(), random_weights=False, say=said.append)
        self.granted = {rank: asyncio.Event() for rank in range(8)}
        self.granted[0].set()
        self.claims: dict[int, DelayedClaim] = {}
        self._starts = starts
        self.let_engines_start()

    def _claim(self, rank: int) -> ResourceClaim:
        self.claims[rank] = DelayedClaim(self.granted[rank])
        return self.claims[rank]

    async def _start_engine(self, rank: int) -> None:
        if rank in self._starts:
            await self._starts[rank]()
        self.group.add({rank: cast(Any, SimpleNamespace(kill=lambda: None))})
        self.queue.open(rank)


async def until(done: Callable[[], bool]) -> None:
    for _ in range(400):
        if done():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within 4 s")


def failing(error: Exception) -> Callable[[], Awaitable[None]]:
    async def start() -> None:
        raise error

    return start


def serving(pool: RolloutPool) -> Sequence[int]:
    return sorted(pool.group.ranks)


def test_workers_join_long_after_the_limit_of_a_start() -> None:
    async def check() -> None:
        said: list[str] = []
        pool = PoolOnPaper(said, {})
        await pool.start()
        assert serving(pool) == [0]
        assert said == ["starts with 1 of 4 rollout workers; the rest join when resources are free"]
        await asyncio.sleep(2.5 * START_S)
        waiting = [line for line in said if "goes on waiting for its resources" in line]
        assert len(waiting) == 3, "once for each, not at every attempt"
        for rank in (1, 2, 3):
            pool.granted[rank].set()
        await until(lambda: serving(pool) == [0, 1, 2, 3])
        assert [line.partition(" after")[0] for line in said[-3:]] == [
            f"rollout {rank} has joined" for rank in (1, 2, 3)
        ]

    asyncio.run(check())


def test_a_request_for_workers_that_still_wait_is_not_answered_as_done() -> None:
    async def check() -> None:
        pool = PoolOnPaper([], {})
        await pool.start()
        with pytest.raises(WorkerError, match=r"3 rollout workers of the run have not started within limits\.start_s"):
            await pool.resize(4)
        for rank in (1, 2, 3):
            asyncio.get_running_loop().call_later(START_S / 2, pool.granted[rank].set)
        await pool.resize(4)
        assert serving(pool) == [0, 1, 2, 3]
        await pool.resize(1)
        assert serving(pool) == [0]

    asyncio.run(check())


def test_fewer_workers_are_those_that_serve() -> None:
    async def check() -> None:
        pool = PoolOnPaper([], {})
        await pool.start()
        for rank in (2, 3):
            pool.granted[rank].set()
        await until(lambda: serving(pool) == [0, 2, 3])
        await pool.resize(3)
        assert serving(pool) == [0, 2, 3]
        assert pool.claims[1].is_released

    asyncio.run(check())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (WorkerError("no memory"), r"warning: rollout 2 failed 2 times .*no memory.*The run goes on with 3"),
        (ConfigError("other code"), r"warning: rollout 2 cannot join, and the run goes on without it: other code"),
    ],
)
def test_one_that_cannot_start_is_reported_and_gives_its_resources_back(error: Exception, message: str) -> None:
    async def check() -> None:
        said: list[str] = []
        pool = PoolOnPaper(said, {2: failing(error)})
        await pool.start()
        for rank in (1, 2, 3):
            pool.granted[rank].set()
        await until(lambda: serving(pool) == [0, 1, 3])
        await until(lambda: pool.claims[2].is_released)
        (line,) = [line for line in said if "the run goes on" in line.lower()]
        assert re.match(message, line), line

    asyncio.run(check())
