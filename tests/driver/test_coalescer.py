"""Batching of items that arrive while a call runs: order, sharing, and the error of a call."""

from __future__ import annotations

import asyncio

import pytest

from demopsd_dist.training.pipelining import Coalescer


def test_items_that_arrive_during_a_call_share_the_next_call() -> None:
    """One call at a time; results are in the order of the calls; errors are raised."""
    calls: list[list[int]] = []

    async def work(items: list[int]) -> int:
        calls.append(items)
        await asyncio.sleep(0.02)
        if 13 in items:
            raise RuntimeError("unlucky")
        return sum(items)

    async def queue(items: list[int]) -> list[int]:
        coalescer = Coalescer(work)
        for item in items:
            coalescer.add(item)
            await asyncio.sleep(0.005)
        return await coalescer.results()

    results = asyncio.run(queue(list(range(12))))
    assert sum(results) == sum(range(12))
    assert [item for items in calls for item in items] == list(range(12))
    assert 1 < len(calls) < 12
    with pytest.raises(RuntimeError, match="unlucky"):
        asyncio.run(queue([13, 1]))


def test_a_failed_call_ends_the_batch_at_the_next_item() -> None:
    async def work(items: list[int]) -> int:
        raise RuntimeError("lost")

    async def run() -> None:
        coalescer = Coalescer(work)
        coalescer.add(1)
        await asyncio.sleep(0.005)
        with pytest.raises(RuntimeError, match="lost"):
            coalescer.add(2)
        coalescer.cancel()

    asyncio.run(run())
