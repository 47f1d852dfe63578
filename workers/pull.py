"""Rollout workers ask for prompts as they have room: a fast one does more, and no answer waits for another."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence

from demopsd_dist.config import Config
from demopsd_dist.data.records import Prompt, Rollout
from demopsd_dist.errors import WorkerError
from demopsd_dist.roles import Sampling
from workers.group import ActorGroup


class Slots:
    """Room for sequences in the engines. First come, first served; the emptiest engine serves."""

    def __init__(self, workers: int, room: int) -> None:
        self._room = room
        self._taken = [0] * workers
        self._queue: deque[tuple[int, asyncio.Future[int]]] = deque()

    async def take(self, sequences: int) -> int:
        """The worker to ask, once one has room; more than an engine's whole room is let in alone."""
        place: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._queue.append((sequences, place))
        self._serve()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.give_back(place.result(), sequences)
            raise

    def give_back(self, worker: int, sequences: int) -> None:
        self._taken[worker] -= sequences
        self._serve()

    @property
    def busy(self) -> list[int]:
        return [worker for worker, taken in enumerate(self._taken) if taken]

    def _serve(self) -> None:
        while self._queue:
            sequences, place = self._queue[0]
            least = min(self._taken)
            if place.done():  # whoever asked has gone
                self._queue.popleft()
            elif least == 0 or least + sequences <= self._room:
                self._queue.popleft()
                worker = self._taken.index(least)
                self._taken[worker] += sequences
                place.set_result(worker)
            else:
                return


class Throughput:
    """Tokens and busy seconds of each worker since the last look."""

    def __init__(self, workers: int) -> None:
        self._tokens = [0] * workers
        self._busy_s = [0.0] * workers
        self._under_way = [0] * workers
        self._since = [0.0] * workers

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
        for worker, under_way in enumerate(self._under_way):
            if under_way:
                self._busy_s[worker] += now - self._since[worker]
                self._since[worker] = now
        figures = {}
        for worker, (tokens, busy_s) in enumerate(zip(self._tokens, self._busy_s, strict=True)):
            if busy_s:
                figures[f"rollout/worker_{worker}_tokens_per_s"] = tokens / busy_s
        self._tokens, self._busy_s = [0] * len(self._tokens), [0.0] * len(self._busy_s)
        return figures


class RolloutGroup:
    """The rollout workers of a run. The answer does not depend on who gets which prompt."""

    def __init__(self, group: ActorGroup, config: Config) -> None:
        self._group = group
        self._call_s = config.limits.call_s
        self._slots = Slots(len(group), config.rollout.max_batch_sequences)
        self._throughput = Throughput(len(group))

    async def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncIterator[tuple[int, list[Rollout]]]:
        """Each prompt's responses as soon as they are there, with its index.

        Raises:
            WorkerError: a worker died or raised; or for `limits.call_s` nothing came.
        """
        asked = {asyncio.ensure_future(self._ask(prompt, sampling)): i for i, prompt in enumerate(prompts)}
        waiting = set(asked)
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, timeout=self._call_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    raise WorkerError(
                        f"rollout {self._slots.busy} finished none of {len(waiting)} groups of {sampling.samples} "
                        f"responses within limits.call_s={self._call_s:g} s."
                    )
                for task in done:
                    yield asked[task], task.result()
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        found = {index: group async for index, group in self.stream(prompts, sampling)}
        return [found[index] for index in range(len(prompts))]

    def figures(self) -> dict[str, float]:
        return self._throughput.figures()

    async def _ask(self, prompt: Prompt, sampling: Sampling) -> list[Rollout]:
        worker = await self._slots.take(sampling.samples)
        self._throughput.begins(worker)
        rollouts: list[Rollout] = []
        try:
            rollouts = await self._group.one(
                worker,
                lambda actor: actor.sample.remote(prompt, sampling),
                what=f"{sampling.samples} responses to {prompt.id}",
            )
            return rollouts
        finally:
            self._throughput.ends(worker, rollouts)
            self._slots.give_back(worker, sampling.samples)
