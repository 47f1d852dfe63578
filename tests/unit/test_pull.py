"""Prompts are handed out as engines have room: the emptiest serves, first come, first served, nobody is forgotten."""

from __future__ import annotations

import asyncio
from collections import Counter

from workers.pull import Slots


def served(room: int, times_s: list[float], jobs: int, sequences: int = 1) -> Counter[int]:
    """How many of `jobs` each worker did, where worker i takes `times_s[i]` for one."""

    async def run() -> Counter[int]:
        slots = Slots(len(times_s), room)
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
        slots = Slots(1, room=1)
        held = await slots.take(1)
        impatient = asyncio.ensure_future(slots.take(1))
        patient = asyncio.ensure_future(slots.take(1))
        await asyncio.sleep(0)
        impatient.cancel()
        slots.give_back(held, 1)
        return await asyncio.wait_for(patient, 5)

    assert asyncio.run(run()) == 0
