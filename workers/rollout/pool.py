"""The rollout workers of a run. Who dies or hangs is replaced, and their number follows `resize`.

A worker serves once its engine has started and holds the current weights. Losing one costs the run what it was
sampling, which others sample again; with the same seeds it is the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demopsd_dist.config import Config
from demopsd_dist.util.errors import LostWorkerError, WorkerError
from workers.actor_group import ActorGroup, ResourceClaim
from workers.cluster.placement import rollout_bundle
from workers.rollout import worker as rollout
from workers.rollout.dispatch import AdmissionQueue, EngineMemoryLock, SyncNewWorker

Say = Callable[[str], None]


class FixedPool:
    """Workers that are there already, for measurements and tests: nobody is replaced, a loss ends the work."""

    def __init__(self, group: ActorGroup, config: Config) -> None:
        self.group, self.slots = group, AdmissionQueue(config.rollout.max_batch_sequences)
        self.sync_new_worker: SyncNewWorker | None = None
        self.room = EngineMemoryLock()
        for rank in group.ranks:
            self.slots.open(rank)

    async def ask(self, rank: int, call: Callable[[Any], Any], *, what: str) -> Any:
        return await self.group.one(rank, call, what=what)

    def lost(self, rank: int, error: LostWorkerError) -> None:
        raise error

    def did_well(self, rank: int) -> None:
        pass

    def figures(self) -> dict[str, float]:
        return {}


@dataclass
class PoolMember:
    placement: ResourceClaim
    failures: list[str] = field(default_factory=list)  # since it last did well
    coming: asyncio.Task[None] | None = None
    leaving: bool = False


class RolloutPool:
    """
    Args:
        blank: engines start without weights; `sync_new_worker` brings them, and makes the newcomer serve.
        say: for lines that a reader should see.
    """

    def __init__(
        self, config: Config, model_folder: Path, *, blank: bool, say: Say, actor: type = rollout.RolloutWorker
    ) -> None:
        self._config, self._folder, self._blank, self._say, self._actor = config, model_folder, blank, say, actor
        self.group = self._of({})  # those who serve
        self.slots = AdmissionQueue(config.rollout.max_batch_sequences)
        self.sync_new_worker: SyncNewWorker | None = None
        self.room = EngineMemoryLock()
        self._members: dict[int, PoolMember] = {}
        self._needed = config.rollout.min_workers or config.rollout.num_workers
        self._replaced = 0

    async def start(self) -> None:
        """Return when `rollout.min_workers` serve; others may still be on their way.

        Raises:
            WorkerError: not so many came within `limits.start_s`, or one of them failed.
        """
        wanted = self._config.rollout.num_workers
        self._add(wanted)
        coming = {member.coming for member in self._members.values() if member.coming is not None}
        deadline = time.monotonic() + self._config.limits.start_s + 5
        while len(self.group) < self._needed or (coming and self._needed == wanted):
            done, coming = await asyncio.wait(
                coming, timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
            if not done or (not coming and len(self.group) < self._needed):
                raise WorkerError(
                    f"{len(self.group)} of rollout.num_workers={wanted} rollout workers started within limits.start_s="
                    f"{self._config.limits.start_s:g} s; at least {self._needed} are needed (rollout.min_workers)."
                )
        if len(self.group) < wanted:
            self._say(f"starts with {len(self.group)} of {wanted} rollout workers; the others join when there is room")

    async def ask(self, rank: int, call: Callable[[Any], Any], *, what: str) -> Any:
        """Ask one, and look now and then whether it gets on.

        Raises:
            LostWorkerError: it died or raised; or while it had this to do it did nothing for `limits.silence_s`.
        """
        silence_s = self._config.limits.silence_s
        answer = asyncio.ensure_future(self.group.one(rank, call, what=what))
        pulse = -1
        try:
            while not (await asyncio.wait([answer], timeout=silence_s))[0]:
                before, pulse = pulse, await self._pulse(rank, silence_s, what)
                if pulse == before:
                    raise LostWorkerError(
                        f"rollout {rank} hangs: nothing done for limits.silence_s={silence_s:g} s with {what} to do."
                    )
            return answer.result()
        finally:
            answer.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await answer  # also what it has failed with, where nobody waits any more

    async def _pulse(self, rank: int, silence_s: float, what: str) -> int:
        try:
            return await asyncio.wait_for(
                self.group.one(rank, lambda actor: actor.pulse.remote(), what="a sign of life"), silence_s
            )
        except TimeoutError:
            raise LostWorkerError(
                f"rollout {rank} hangs: no sign of life within limits.silence_s={silence_s:g} s, with {what} to do."
            ) from None

    def did_well(self, rank: int) -> None:
        if rank in self._members:
            self._members[rank].failures.clear()

    def lost(self, rank: int, error: LostWorkerError) -> None:
        """End what is left of it, and begin to replace it, unless that has been done."""
        member = self._members.get(rank)
        if member is None or rank not in self.group:
            return
        self.slots.close(rank)
        self.group.remove(rank)
        member.failures.append(str(error))
        if member.leaving:
            self._forget(rank)
        elif not self._too_often(rank):
            self._say(f"warning: {error} It is replaced, and its work done again.")
            self._replaced += 1
            member.coming = asyncio.ensure_future(self._replace(rank))

    async def resize(self, workers: int) -> None:
        """Add so many as are missing, or take leave of the last ones: they end when they have done what they have.

        Returns when the number serves.
        """
        staying = [rank for rank, member in sorted(self._members.items()) if not member.leaving]
        self._needed = min(self._needed, workers)
        if workers > len(staying):
            added = self._add(workers - len(staying))
            await asyncio.gather(*(task for rank in added if (task := self._members[rank].coming)))
        else:
            await asyncio.gather(*(self._leave(rank) for rank in staying[workers:]))

    def figures(self) -> dict[str, float]:
        return {"rollout/workers": float(len(self.group)), "rollout/workers_replaced": float(self._replaced)}

    def stop(self) -> None:
        self.group.kill()
        for rank in list(self._members):
            self._forget(rank)

    def _placed(self, rank: int) -> ResourceClaim:
        return ResourceClaim([rollout_bundle(self._config, rank)])

    def _spawned(self, placement: ResourceClaim) -> dict[int, Any]:
        env = rollout.environment(self._config)
        return placement.spawn("rollout", self._actor, lambda rank: (rank, self._config, self._folder), env)

    def _of(self, handles: dict[int, Any]) -> ActorGroup:
        return ActorGroup("rollout", handles)

    def _add(self, count: int) -> list[int]:
        first = max(self._members, default=-1) + 1
        added = list(range(first, first + count))
        for rank in added:
            self._members[rank] = PoolMember(self._placed(rank))
            self._members[rank].coming = asyncio.ensure_future(self._bring_up(rank))
        return added

    async def _bring_up(self, rank: int) -> None:
        """
        Raises:
            WorkerError: no room for it, or its engine does not start.
        """
        await self._members[rank].placement.ready(self._config.limits.start_s)
        async with self.room.for_an_engine():
            await self._started(rank)

    async def _started(self, rank: int) -> None:
        limits, member = self._config.limits, self._members[rank]
        newcomer = self._of(self._spawned(member.placement))

        def serve() -> None:
            self.group.put(newcomer.handles)
            self.slots.open(rank)

        try:
            await newcomer.each(
                lambda worker, _: worker.start.remote(blank=self._blank), within_s=limits.start_s, what="vLLM engine"
            )
            if self.sync_new_worker is None:
                serve()
            else:
                await self.sync_new_worker(newcomer, serve)
        except BaseException:
            newcomer.kill()
            raise

    async def _replace(self, rank: int) -> None:
        began = time.monotonic()
        while True:
            try:
                await self._bring_up(rank)
            except WorkerError as error:
                self._members[rank].failures.append(str(error))
                if self._too_often(rank):
                    return
                self._say(f"warning: rollout {rank} could not be replaced, and is tried again: {error}")
            except Exception as error:  # of a kind that trying again does not mend: wrong weights, for example
                self.slots.fail(error)
                return
            else:
                self._say(f"rollout {rank} is back after {time.monotonic() - began:.1f} s")
                return

    def _too_often(self, rank: int) -> bool:
        """Give it up where it has failed too often; and the run, where too few are left."""
        failures, restarts = self._members[rank].failures, self._config.limits.restarts
        if len(failures) <= restarts:
            return False
        story = f"rollout {rank} failed {len(failures)} times (limits.restarts={restarts}): " + "  ".join(failures)
        self._forget(rank)
        if len(self._members) < self._needed:
            self.slots.fail(WorkerError(f"{story}  {len(self._members)} of {self._needed} needed workers are left."))
        else:
            self._say(f"warning: {story}  The run goes on with {len(self._members)}.")
        return True

    async def _leave(self, rank: int) -> None:
        member = self._members[rank]
        member.leaving = True
        if member.coming is not None and not member.coming.done():
            member.coming.cancel()
        self.slots.close(rank)
        deadline = time.monotonic() + self._config.limits.call_s
        while rank in self.slots.busy and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        if rank in self.group:
            self.group.remove(rank)
        self._forget(rank)

    def _forget(self, rank: int) -> None:
        if (member := self._members.pop(rank, None)) is not None:
            member.placement.release()
