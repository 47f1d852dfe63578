"""Batches in flight, bounded: the one place that decides how stale a rollout may be."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class PrefetchQueue(Generic[T]):
    """Step k's batch is begun once step k - ahead - 1 has been learned and published.

    So it is sampled from weights at most `ahead` versions older than those it updates; `ahead=0` is on-policy.
    """

    def __init__(self, produce: Callable[[int], Awaitable[T]], first_step: int, ahead: int, last_step: int) -> None:
        self._produce = produce
        self._next, self._last = first_step, last_step
        self._in_flight: deque[asyncio.Task[T]] = deque()
        for _ in range(ahead + 1):
            self.admit()

    def admit(self) -> None:
        """Begin one more step's batch, unless the run needs no more."""
        if self._next < self._last:
            self._in_flight.append(asyncio.ensure_future(self._run(self._next)))
            self._next += 1

    async def take(self) -> T:
        """The oldest batch in flight, when it is done."""
        return await self._in_flight.popleft()

    async def close(self) -> None:
        for task in self._in_flight:
            task.cancel()
        await asyncio.gather(*self._in_flight, return_exceptions=True)

    async def _run(self, step: int) -> T:
        return await self._produce(step)


@asynccontextmanager
async def open_prefetch_queue(
    produce: Callable[[int], Awaitable[T]], *, first_step: int, last_step: int, ahead: int
) -> AsyncIterator[PrefetchQueue[T]]:
    """A queue over steps `first_step .. last_step - 1`; what is still in flight at the end is cancelled."""
    queue = PrefetchQueue(produce, first_step, ahead, last_step)
    try:
        yield queue
    finally:
        await queue.close()
