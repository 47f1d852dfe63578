"""Overlap of the stages of a step: prefetching of step batches, and batching of items that arrive while a call runs.

The number of batches in flight bounds the staleness of every rollout.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class PrefetchQueue(Generic[T]):
    """Batches of the next steps, built in the background.

    The batch of step k is started once the weights of step k - ahead - 1 are published. It is therefore sampled from
    weights at most `ahead` versions older than those it updates; `ahead=0` is on-policy.
    """

    def __init__(self, build: Callable[[int], Awaitable[T]], first_step: int, ahead: int, last_step: int) -> None:
        self._build = build
        self._next, self._last = first_step, last_step
        self._in_flight: deque[asyncio.Task[T]] = deque()
        for _ in range(ahead + 1):
            self.start_next()

    def start_next(self) -> None:
        """Start to build one more batch, unless every remaining step has one."""
        if self._next < self._last:
            self._in_flight.append(asyncio.ensure_future(self._run(self._next)))
            self._next += 1

    async def next_batch(self) -> T:
        """Wait for the oldest batch in flight and return it."""
        return await self._in_flight.popleft()

    async def close(self) -> None:
        """Cancel the batches in flight."""
        for task in self._in_flight:
            task.cancel()
        await asyncio.gather(*self._in_flight, return_exceptions=True)

    async def _run(self, step: int) -> T:
        return await self._build(step)


@asynccontextmanager
async def open_prefetch_queue(
    build: Callable[[int], Awaitable[T]], *, first_step: int, last_step: int, ahead: int
) -> AsyncIterator[PrefetchQueue[T]]:
    """A queue over steps `first_step .. last_step - 1`; batches that are in flight at the end are cancelled."""
    queue = PrefetchQueue(build, first_step, ahead, last_step)
    try:
        yield queue
    finally:
        await queue.close()


class Coalescer(Generic[T, R]):
    """Runs one call of `work` at a time, each on all items added since the previous call began.

    Calls grow with the load: the longer a call takes, the more items the next one has.
    """

    def __init__(self, work: Callable[[list[T]], Awaitable[R]]) -> None:
        self._work = work
        self._waiting: list[T] = []
        self._results: list[R] = []
        self._running: asyncio.Task[None] | None = None

    def add(self, item: T) -> None:
        """Add an item, and start a call if none is running. The error of a call that has failed is raised."""
        self._waiting.append(item)
        if self._running is not None and self._running.done():
            self._running.result()
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._run())

    async def results(self) -> list[R]:
        """Wait until every item is done. Results of the calls in their order; an error of a call is raised."""
        if self._running is not None:
            await self._running
        return self._results

    def cancel(self) -> None:
        """Cancel the call that is running."""
        if self._running is not None and not self._running.cancel() and not self._running.cancelled():
            self._running.exception()  # retrieved, as it comes with the error that has ended the step

    async def _run(self) -> None:
        await asyncio.sleep(0)  # items added in the same turn of the event loop share a call
        while self._waiting:
            items, self._waiting = self._waiting, []
            self._results.append(await self._work(items))
