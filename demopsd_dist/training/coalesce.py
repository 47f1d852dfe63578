"""Batching of items that arrive while a call is running."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Coalescer(Generic[T, R]):
    """Runs one call of `work` at a time, each on all items added since the call before began.

    Calls grow with the load: the longer a call takes, the more items the next one has.
    """

    def __init__(self, work: Callable[[list[T]], Awaitable[R]]) -> None:
        self._work = work
        self._waiting: list[T] = []
        self._results: list[R] = []
        self._running: asyncio.Task[None] | None = None

    def add(self, item: T) -> None:
        """Add an item, and start a call if none is running."""
        self._waiting.append(item)
        if self._running is None or (self._running.done() and self._running.exception() is None):
            self._running = asyncio.ensure_future(self._run())

    async def results(self) -> list[R]:
        """Wait until every item is done. Results of the calls in their order; an error of a call is raised."""
        if self._running is not None:
            await self._running
        return self._results

    def cancel(self) -> None:
        """Cancel the call that is running."""
        if self._running is not None:
            self._running.cancel()

    async def _run(self) -> None:
        await asyncio.sleep(0)  # items added in the same turn of the event loop share a call
        while self._waiting:
            items, self._waiting = self._waiting, []
            self._results.append(await self._work(items))
