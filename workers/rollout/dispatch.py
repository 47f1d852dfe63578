"""Rollout workers ask for prompts as they have room: a fast one does more, and no answer waits for another."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from demopsd_dist.config import Config
from demopsd_dist.data.records import Prompt, Rollout
from demopsd_dist.training.roles import Sampling
from demopsd_dist.util.errors import LostWorkerError, WorkerError
from workers.actor_group import ActorGroup


class AdmissionQueue:
    """EngineMemoryLock for sequences in the engines. First come, first served; the emptiest engine serves."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._taken: Counter[int] = Counter()
        self._open: set[int] = set()
        self._queue: deque[tuple[int, asyncio.Future[int]]] = deque()
        self._failure: Exception | None = None

    def open(self, worker: int) -> None:
        self._open.add(worker)
        self._serve()

    def close(self, worker: int) -> None:
        """It gets nothing more; what it has is given back as it ends."""
        self._open.discard(worker)

    def fail(self, error: Exception) -> None:
        """Nobody will serve any more: all who wait, and whoever comes, get this."""
        self._failure = error
        for _, place in self._queue:
            if not place.done():
                place.set_exception(error)

    async def take(self, sequences: int) -> int:
        """The worker to ask, once one has room; more than an engine's whole room is let in alone."""
        if self._failure is not None:
            raise self._failure
        place: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._queue.append((sequences, place))
        self._serve()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and not place.exception():
                self.give_back(place.result(), sequences)
            raise

    def give_back(self, worker: int, sequences: int) -> None:
        self._taken[worker] -= sequences
        self._serve()

    @property
    def busy(self) -> list[int]:
        return sorted(worker for worker, taken in self._taken.items() if taken)

    def _serve(self) -> None:
        while self._queue and self._open:
            sequences, place = self._queue[0]
            worker = min(self._open, key=lambda worker: (self._taken[worker], worker))
            taken = self._taken[worker]
            if place.done():  # whoever asked has gone
                self._queue.popleft()
            elif not taken or taken + sequences <= self._room:
                self._queue.popleft()
                self._taken[worker] += sequences
                place.set_result(worker)
            else:
                return


class WorkerThroughput:
    """Tokens and busy seconds of each worker since the last look."""

    def __init__(self) -> None:
        self._tokens: Counter[int] = Counter()
        self._busy_s: dict[int, float] = defaultdict(float)
        self._under_way: Counter[int] = Counter()
        self._since: dict[int, float] = {}

    def begins(self, worker: int) -> None:
        if not self._under_way[worker]:
            self._since[worker] = time.monotonic()
        self._under_way[worker] += 1

    def ends(self, worker: int, rollouts: Sequence[Rollout] = ()) -> None:
        self._under_way[worker] -= 1
        self._tokens[worker] += sum(len(rollout.tokens_T) for rollout in rollouts)
        if not self._under_way[worker]:
            self._busy_s[worker] += time.monotonic() - self._since[worker]

    def figures(self) -> dict[str, float]:
        now = time.monotonic()
        for worker, under_way in self._under_way.items():
            if under_way:
                self._busy_s[worker] += now - self._since[worker]
                self._since[worker] = now
        figures = {
            f"rollout/worker_{worker}_tokens_per_s": self._tokens[worker] / busy_s
            for worker, busy_s in sorted(self._busy_s.items())
            if busy_s
        }
        self._tokens.clear()
        self._busy_s.clear()
        return figures


SyncNewWorker = Callable[[ActorGroup, Callable[[], None]], Awaitable[None]]  # newcomer, what makes it serve


class EngineMemoryLock:
    """Memory that engines which start and learners which step have in turn (`rollout.sleep`)."""

    def __init__(self) -> None:
        self._starting = 0
        self._open, self._empty = asyncio.Event(), asyncio.Event()
        self.open()
        self._empty.set()

    @asynccontextmanager
    async def for_an_engine(self) -> AsyncIterator[None]:
        """While it starts. Waits where the learners have the room."""
        while self.taken:
            await self._open.wait()
        self._starting += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._starting -= 1
            if not self._starting:
                self._empty.set()

    @property
    def taken(self) -> bool:
        """By the learners, or they wait for it."""
        return not self._open.is_set()

    def open(self) -> None:
        self._open.set()

    async def close(self, within_s: float) -> None:
        """For the learners: when no engine is starting any more, or has not come to an end of it in so many seconds."""
        self._open.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), within_s)


class Pool(Protocol):
    """The rollout workers (`fleet.py`). `group` are those who serve; `sync_new_worker`, where there is one, brings the current
    weights to whoever joins."""

    group: ActorGroup
    slots: AdmissionQueue
    sync_new_worker: SyncNewWorker | None
    room: EngineMemoryLock

    async def ask(self, rank: int, call: Callable[[Any], Any], *, what: str) -> Any:
        """
        Raises:
            LostWorkerError: it died, raised or hangs.
        """
        ...

    def lost(self, rank: int, error: LostWorkerError) -> None: ...

    def did_well(self, rank: int) -> None: ...

    def figures(self) -> dict[str, float]: ...


class RolloutGroup:
    """The rollout workers of a run. The answer does not depend on who gets which prompt, nor on who fails."""

    def __init__(self, fleet: Pool, config: Config) -> None:
        self._fleet = fleet
        self._config = config
        self._throughput = WorkerThroughput()

    async def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncIterator[tuple[int, list[Rollout]]]:
        """Each prompt's responses as soon as they are there, with its index.

        Raises:
            WorkerError: for `limits.call_s` nothing came; some prompt was asked for in vain `limits.attempts` times; or
                no worker is left.
        """
        call_s = self._config.limits.call_s
        asked = {
            asyncio.ensure_future(self._ask([prompts[i] for i in share], sampling)): share
            for share in self._shares(len(prompts))
        }
        waiting = set(asked)
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, timeout=call_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    raise WorkerError(
                        f"rollout {self._fleet.slots.busy} finished none of {len(waiting)} groups of "
                        f"{sampling.samples} responses within limits.call_s={call_s:g} s."
                    )
                for task in done:
                    for place, group in zip(asked[task], task.result(), strict=True):
                        yield place, group
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        found = {index: group async for index, group in self.stream(prompts, sampling)}
        return [found[index] for index in range(len(prompts))]

    def figures(self) -> dict[str, float]:
        return self._throughput.figures() | self._fleet.figures()

    def _shares(self, count: int) -> list[list[int]]:
        """Which prompts are asked for together. What an engine has under way at once decides how its sums are rounded,
        so where a run must be the same bit for bit, that is fixed: one share for each worker."""
        if not self._config.deterministic:
            return [[i] for i in range(count)]
        workers = self._config.rollout.num_workers
        return [share for first in range(workers) if (share := list(range(first, count, workers)))]

    async def _ask(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        sequences = len(prompts) * sampling.samples
        room = self._config.rollout.max_batch_sequences if self._config.deterministic else sequences
        what = f"{sequences} responses to {prompts[0].id}" + (f" and {len(prompts) - 1} more" if prompts[1:] else "")
        failures: list[str] = []
        for attempt in range(1, self._config.limits.attempts + 1):
            worker = await self._fleet.slots.take(room)
            self._throughput.begins(worker)
            groups: list[list[Rollout]] = []
            try:
                found = await self._fleet.ask(worker, lambda actor: actor.sample.remote(prompts, sampling), what=what)
                validate_rollouts(found, prompts, sampling, worker)
                groups = [[replace(rollout, attempt=attempt) for rollout in group] for group in found]
                self._fleet.did_well(worker)
                return groups
            except LostWorkerError as error:
                failures.append(str(error))
                self._fleet.lost(worker, error)
            finally:
                self._throughput.ends(worker, [rollout for group in groups for rollout in group])
                self._fleet.slots.give_back(worker, room)
        raise WorkerError(
            f"{what} were asked for in vain {len(failures)} times (limits.attempts): " + "  ".join(failures)
        )


def validate_rollouts(
    groups: Sequence[Sequence[Rollout]], prompts: Sequence[Prompt], sampling: Sampling, worker: int
) -> None:
    """
    Raises:
        LostWorkerError: these are no answers to these prompts.
    """
    asked = [(prompt.id, sample) for prompt in prompts for sample in range(sampling.samples)]
    came = [(rollout.prompt.id, rollout.sample) for group in groups for rollout in group]
    wrong = f"was asked for {asked[0]} to {asked[-1]} and gave {came[:1]} to {came[-1:]}" if came != asked else None
    for rollout in (rollout for group in groups for rollout in group):
        lengths = {len(rollout.tokens_T), len(rollout.logp_T), len(rollout.version_T)}
        if len(lengths) > 1 or lengths == {0} or max(lengths) > sampling.max_response_tokens:
            wrong = f"gave {rollout.id} with {sorted(lengths)} tokens, log-probabilities and versions"
        elif not np.isfinite(rollout.logp_T).all() or rollout.logp_T.max() > 1e-3:
            wrong = f"gave {rollout.id} with log-probabilities from {rollout.logp_T.min()} to {rollout.logp_T.max()}"
    if wrong is not None:
        raise LostWorkerError(f"rollout {worker} {wrong}. Whatever is wrong with it, it is not trusted.")
