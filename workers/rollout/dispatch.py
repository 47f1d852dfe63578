"""Dispatch of prompts to rollout workers: admission queue, memory shared with learners, interface of the pool.

Workers get prompts when they have capacity: a fast worker samples more prompts, and no response waits for that of
another prompt.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from demopsd_dist.data.records import Rollout
from demopsd_dist.util.errors import LostWorkerError
from workers.actor_group import ActorGroup
from workers.actor_handle import Handle, R, Ref
from workers.rollout.worker import RolloutWorker


class AdmissionQueue:
    """Admission of sequences to the engines. First come, first served, on the engine with the fewest sequences.

    Args:
        capacity: sequences that one engine runs at a time.

    Attributes:
        released: number of requests that have ended so far.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._running: Counter[int] = Counter()  # sequences, by worker
        self._open: set[int] = set()
        self._requests: deque[tuple[int, asyncio.Future[int]]] = deque()
        self._failure: Exception | None = None
        self.released = 0

    def open(self, worker: int) -> None:
        """Start to admit requests to the worker."""
        self._open.add(worker)
        self._serve()

    def close(self, worker: int) -> None:
        """Admit nothing more to the worker; its running sequences are released when they end."""
        self._open.discard(worker)

    def fail(self, error: Exception) -> None:
        """Fail all requests, waiting and future, because no worker is left to serve them."""
        self._failure = error
        for _, request in self._requests:
            if not request.done():
                request.set_exception(error)

    async def acquire(self, sequences: int) -> int:
        """Wait for a worker with capacity and return its rank. A request above an engine's capacity runs alone."""
        if self._failure is not None:
            raise self._failure
        request: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._requests.append((sequences, request))
        self._serve()
        try:
            return await request
        except asyncio.CancelledError:
            if request.done() and not request.cancelled() and not request.exception():
                self.release(request.result(), sequences)
            raise

    def release(self, worker: int, sequences: int) -> None:
        """Give back the capacity of sequences that have ended."""
        self._running[worker] -= sequences
        self.released += 1
        self._serve()

    @property
    def busy(self) -> list[int]:
        """Workers with running sequences."""
        return sorted(worker for worker, running in self._running.items() if running)

    def _serve(self) -> None:
        while self._requests and self._open:
            sequences, request = self._requests[0]
            worker = min(self._open, key=lambda worker: (self._running[worker], worker))
            running = self._running[worker]
            if request.done():  # cancelled by its caller
                self._requests.popleft()
            elif not running or running + sequences <= self._capacity:
                self._requests.popleft()
                self._running[worker] += sequences
                request.set_result(worker)
            else:
                return


class WorkerThroughput:
    """Tokens and busy seconds of each worker since the metrics were last read."""

    def __init__(self) -> None:
        self._tokens: Counter[int] = Counter()
        self._busy_s: dict[int, float] = defaultdict(float)
        self._calls: Counter[int] = Counter()  # calls in progress
        self._since: dict[int, float] = {}

    def begin(self, worker: int) -> None:
        """Note that a call of the worker begins."""
        if not self._calls[worker]:
            self._since[worker] = time.monotonic()
        self._calls[worker] += 1

    def end(self, worker: int, rollouts: Sequence[Rollout] = ()) -> None:
        """Note that a call of the worker has ended, with these rollouts."""
        self._calls[worker] -= 1
        self._tokens[worker] += sum(len(rollout.tokens_T) for rollout in rollouts)
        if not self._calls[worker]:
            self._busy_s[worker] += time.monotonic() - self._since[worker]

    def metrics(self) -> dict[str, float]:
        """Tokens per busy second of each worker; resets the counts."""
        now = time.monotonic()
        for worker, calls in self._calls.items():
            if calls:
                self._busy_s[worker] += now - self._since[worker]
                self._since[worker] = now
        metrics = {
            f"rollout/worker_{worker}_tokens_per_s": self._tokens[worker] / busy_s
            for worker, busy_s in sorted(self._busy_s.items())
            if busy_s
        }
        self._tokens.clear()
        self._busy_s.clear()
        return metrics


class EngineMemoryLock:
    """Memory that starting engines and stepping learners use in turn (`rollout.sleep`)."""

    def __init__(self) -> None:
        self._starting = 0
        self._free, self._none_starting = asyncio.Event(), asyncio.Event()
        self.release()
        self._none_starting.set()

    @asynccontextmanager
    async def engine_start(self) -> AsyncIterator[None]:
        """Hold the memory while an engine starts. Waits while the learners hold it."""
        while self.held_by_learners:
            await self._free.wait()
        self._starting += 1
        self._none_starting.clear()
        try:
            yield
        finally:
            self._starting -= 1
            if not self._starting:
                self._none_starting.set()

    @property
    def held_by_learners(self) -> bool:
        """Whether the learners hold the memory, or wait for it."""
        return not self._free.is_set()

    def release(self) -> None:
        """Give the memory back to the engines."""
        self._free.set()

    async def acquire(self, within_s: float) -> None:
        """Take the memory for the learners once no engine is starting, or after `within_s` seconds."""
        self._free.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none_starting.wait(), within_s)


RolloutWorkers = ActorGroup[RolloutWorker]
SyncNewWorker = Callable[[RolloutWorkers, Callable[[], None]], Awaitable[None]]  # new worker, callback: it may serve


class Pool(Protocol):
    """The rollout workers (`pool.py`).

    Attributes:
        group: the workers that serve.
        queue: admission of sequences to them.
        sync_new_worker: brings the current weights to a worker that joins; None where workers start with weights.
        memory: shared in turn with the learners.
    """

    group: RolloutWorkers
    queue: AdmissionQueue
    sync_new_worker: SyncNewWorker | None
    memory: EngineMemoryLock

    async def call(self, rank: int, call: Callable[[Handle[RolloutWorker]], Ref[R]], *, what: str) -> R:
        """Call one worker and wait for the result.

        Raises:
            LostWorkerError: it died, raised or hangs.
        """
        ...

    def report_lost_worker(self, rank: int, error: LostWorkerError) -> None:
        """Note that a call lost the worker."""
        ...

    def report_success(self, rank: int) -> None:
        """Note that a call succeeded: earlier failures of the worker no longer count."""
        ...

    def metrics(self) -> dict[str, float]:
        """Metrics of the pool, by name."""
        ...
