"""Dispatch of prompts: the engine with the fewest sequences serves, first come, first served; no request is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from demopsd_dist.config import load
from demopsd_dist.data.records import Rollout
from demopsd_dist.training.roles import Sampling
from demopsd_dist.util.errors import WorkerError
from tests.unit.run_record.sample_rows import prompt, rollout
from workers.rollout.dispatch import AdmissionQueue, EngineMemoryLock
from workers.rollout.group import RolloutGroup

DEMO = Path(__file__).parents[4] / "configs" / "demo.yaml"


def open_queue(workers: int, capacity: int) -> AdmissionQueue:
    """A queue that all workers serve."""
    queue = AdmissionQueue(capacity)
    for worker in range(workers):
        queue.open(worker)
    return queue


def jobs_by_worker(capacity: int, times_s: list[float], jobs: int, sequences: int = 1) -> Counter[int]:
    """Number of `jobs` that each worker did, where worker i takes `times_s[i]` for one."""

    async def run() -> Counter[int]:
        queue = open_queue(len(times_s), capacity)
        done: Counter[int] = Counter()

        async def job() -> None:
            worker = await queue.acquire(sequences)
            await asyncio.sleep(times_s[worker])
            queue.release(worker, sequences)
            done[worker] += 1

        await asyncio.wait_for(asyncio.gather(*(job() for _ in range(jobs))), 30)
        assert queue.busy == []
        return done

    return asyncio.run(run())


def test_a_fast_worker_does_more() -> None:
    done = jobs_by_worker(capacity=1, times_s=[0.01, 0.04], jobs=50)
    assert done.total() == 50
    assert done[0] > 2 * done[1]


def test_what_fits_at_once_is_spread_evenly() -> None:
    assert jobs_by_worker(capacity=256, times_s=[0.01, 0.04], jobs=24, sequences=8) == {0: 12, 1: 12}


def test_a_request_above_the_capacity_runs_alone() -> None:
    assert jobs_by_worker(capacity=4, times_s=[0.001], jobs=3, sequences=9) == {0: 3}


def test_a_cancelled_request_blocks_no_other() -> None:
    async def run() -> int:
        queue = open_queue(1, capacity=1)
        worker = await queue.acquire(1)
        cancelled = asyncio.ensure_future(queue.acquire(1))
        waiting = asyncio.ensure_future(queue.acquire(1))
        await asyncio.sleep(0)
        cancelled.cancel()
        queue.release(worker, 1)
        return await asyncio.wait_for(waiting, 5)

    assert asyncio.run(run()) == 0


def test_a_lost_worker_gets_nothing_more_until_it_is_back() -> None:
    async def run() -> None:
        queue = open_queue(2, capacity=1)
        workers = [await queue.acquire(1), await queue.acquire(1)]
        assert sorted(workers) == [0, 1]
        queue.close(0)
        queue.release(0, 1)  # the caller that lost it gives its capacity back
        waiting = asyncio.ensure_future(queue.acquire(1))
        await asyncio.sleep(0)
        assert not waiting.done()
        queue.open(0)
        assert await asyncio.wait_for(waiting, 5) == 0

    asyncio.run(run())


def test_requests_fail_when_no_worker_is_left() -> None:
    async def run() -> None:
        queue = open_queue(1, capacity=1)
        await queue.acquire(1)
        waiting = asyncio.ensure_future(queue.acquire(1))
        await asyncio.sleep(0)
        queue.close(0)
        queue.fail(WorkerError("the last one failed 4 times"))
        with pytest.raises(WorkerError, match="failed 4 times"):
            await waiting
        with pytest.raises(WorkerError, match="failed 4 times"):
            await queue.acquire(1)

    asyncio.run(run())


def test_starting_engines_and_stepping_learners_use_the_memory_in_turn() -> None:
    done: list[str] = []

    async def engine(memory: EngineMemoryLock, name: str) -> None:
        async with memory.engine_start():
            await asyncio.sleep(0.02)
            done.append(name)

    async def run() -> None:
        memory = EngineMemoryLock()
        early = [asyncio.ensure_future(engine(memory, name)) for name in ("first", "second")]
        await asyncio.sleep(0)
        await memory.acquire(within_s=10)
        late = asyncio.ensure_future(engine(memory, "late"))
        await asyncio.sleep(0.05)
        done.append("step")
        memory.release()
        await asyncio.gather(*early, late)

    asyncio.run(run())
    assert done == ["first", "second", "step", "late"]


def test_learners_wait_for_an_engine_within_their_time_limit() -> None:
    async def run() -> None:
        memory = EngineMemoryLock()
        async with memory.engine_start():
            await asyncio.wait_for(memory.acquire(within_s=0.01), 10)

    asyncio.run(run())


class SlowPool:
    """A pool of one engine that takes its time for each prompt, or never ends."""

    def __init__(self, takes_s: float) -> None:
        self.queue = open_queue(1, capacity=1)
        self._takes_s = takes_s

    async def call(self, rank: int, call: Callable[[Any], Any], *, what: str) -> list[list[Rollout]]:
        await asyncio.sleep(self._takes_s)
        return [[rollout(prompt(what.rpartition(" ")[2]))]]

    def report_success(self, rank: int) -> None:
        pass


def test_a_batch_that_waits_behind_another_is_not_taken_for_stuck() -> None:
    """The second batch waits for longer than `limits.call_s`, and the responses of the first come within it."""
    config = load(DEMO, ["limits.call_s=1"])
    sampling = Sampling(1, 1.0, 1.0, 8, "0")

    async def run(takes_s: float) -> list[int]:
        group = RolloutGroup(cast(Any, SlowPool(takes_s)), config)
        batches = [[prompt(f"{name}{i}") for i in range(4)] for name in "ab"]
        return [len(rollouts) for rollouts in await asyncio.gather(*(group.sample(one, sampling) for one in batches))]

    assert asyncio.run(run(0.4)) == [4, 4]
    with pytest.raises(WorkerError, match=r"finished none of 4 groups of 1 responses within limits\.call_s=1 s"):
        asyncio.run(run(60.0))
