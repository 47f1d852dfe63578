"""Prompts are handed out as engines have room: the emptiest serves, first come, first served, nobody is forgotten."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from demopsd_dist.util.errors import WorkerError
from workers.rollout.dispatch import AdmissionQueue, EngineMemoryLock


def opened(workers: int, room: int) -> AdmissionQueue:
    slots = AdmissionQueue(room)
    for worker in range(workers):
        slots.open(worker)
    return slots


def served(room: int, times_s: list[float], jobs: int, sequences: int = 1) -> Counter[int]:
    """How many of `jobs` each worker did, where worker i takes `times_s[i]` for one."""

    async def run() -> Counter[int]:
        slots = opened(len(times_s), room)
        done: Counter[int] = Counter()

        async def job() -> None:
            worker = await slots.take(sequences)
            await asyncio.sleep(times_s[worker])
            slots.give_back(worker, sequences)
            done[worker] += 1

        await asyncio.wait_for(asyncio.gather(*(job() for _ in range(jobs))), 30)
        assert slots.busy == []
        return done

    return asyncio.run(run())


def test_a_fast_worker_does_more() -> None:
    done = served(room=1, times_s=[0.01, 0.04], jobs=50)
    assert done.total() == 50
    assert done[0] > 2 * done[1]


def test_what_fits_at_once_is_spread_evenly() -> None:
    assert served(room=256, times_s=[0.01, 0.04], jobs=24, sequences=8) == {0: 12, 1: 12}


def test_more_than_a_whole_engine_is_let_in_alone() -> None:
    assert served(room=4, times_s=[0.001], jobs=3, sequences=9) == {0: 3}


def test_who_stops_waiting_holds_up_nobody() -> None:
    async def run() -> int:
        slots = opened(1, room=1)
        held = await slots.take(1)
        impatient = asyncio.ensure_future(slots.take(1))
        patient = asyncio.ensure_future(slots.take(1))
        await asyncio.sleep(0)
        impatient.cancel()
        slots.give_back(held, 1)
        return await asyncio.wait_for(patient, 5)

    assert asyncio.run(run()) == 0


def test_a_worker_that_is_lost_gets_nothing_more_until_it_is_back() -> None:
    async def run() -> None:
        slots = opened(2, room=1)
        held = [await slots.take(1), await slots.take(1)]
        assert sorted(held) == [0, 1]
        slots.close(0)
        slots.give_back(0, 1)  # whoever waited for it has noticed
        waiting = asyncio.ensure_future(slots.take(1))
        await asyncio.sleep(0)
        assert not waiting.done()
        slots.open(0)
        assert await asyncio.wait_for(waiting, 5) == 0

    asyncio.run(run())


def test_when_nobody_is_left_whoever_waits_is_told() -> None:
    async def run() -> None:
        slots = opened(1, room=1)
        await slots.take(1)
        waiting = asyncio.ensure_future(slots.take(1))
        await asyncio.sleep(0)
        slots.close(0)
        slots.fail(WorkerError("the last one failed 4 times"))
        with pytest.raises(WorkerError, match="failed 4 times"):
            await waiting
        with pytest.raises(WorkerError, match="failed 4 times"):
            await slots.take(1)

    asyncio.run(run())


def test_engines_that_start_and_learners_that_step_have_the_room_in_turn() -> None:
    done: list[str] = []

    async def engine(room: EngineMemoryLock, name: str) -> None:
        async with room.for_an_engine():
            await asyncio.sleep(0.02)
            done.append(name)

    async def run() -> None:
        room = EngineMemoryLock()
        early = [asyncio.ensure_future(engine(room, name)) for name in ("first", "second")]
        await asyncio.sleep(0)
        await room.close(within_s=10)
        late = asyncio.ensure_future(engine(room, "late"))
        await asyncio.sleep(0.05)
        done.append("step")
        room.open()
        await asyncio.gather(*early, late)

    asyncio.run(run())
    assert done == ["first", "second", "step", "late"]


def test_learners_wait_for_an_engine_no_longer_than_they_said() -> None:
    async def run() -> None:
        room = EngineMemoryLock()
        async with room.for_an_engine():
            await asyncio.wait_for(room.close(within_s=0.01), 10)

    asyncio.run(run())
