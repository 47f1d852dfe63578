"""What is finished is worked on while the rest is still coming."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Coalescer(Generic[T, R]):
    """One call of `work` at a time, each on all that has been added since: the longer a call, the larger the next."""

    def __init__(self, work: Callable[[list[T]], Awaitable[R]]) -> None:
        self._work = work
        self._waiting: list[T] = []
        self._results: list[R] = []
        self._running: asyncio.Task[None] | None = None

    def add(self, item: T) -> None:
        self._waiting.append(item)
        if self._running is None or (self._running.done() and self._running.exception() is None):
            self._running = asyncio.ensure_future(self._run())

    async def results(self) -> list[R]:
        """Of all calls, when all that was added is done; raises what a call raised."""
        if self._running is not None:
            await self._running
        return self._results

    def cancel(self) -> None:
        if self._running is not None:
            self._running.cancel()

    async def _run(self) -> None:
        await asyncio.sleep(0)  # what is added together goes together
        while self._waiting:
            taken, self._waiting = self._waiting, []
            self._results.append(await self._work(taken))
