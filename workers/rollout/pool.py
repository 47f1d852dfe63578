"""The rollout workers of a run: workers that die or hang are replaced, and their number follows `resize`.

A worker serves once its engine has started and holds the current weights. Losing a worker costs the run the responses
that it was sampling; other workers sample them again, and with the same seeds they are the same.

When a worker dies:

* rollout worker: its call raises `LostWorkerError` (`ActorGroup` in `workers/actor_group.py`), or `RolloutPool.call`
  sees that it hangs. `RolloutGroup` (`workers/rollout/group.py`) reports it by `report_lost_worker`, which starts the
  replacement, and sends the prompts to another worker. The new worker gets its weights from
  `WeightPublisher.sync_new_worker` (`workers/weights/publisher.py`).
* learner or teacher: the call raises `LostStateError`; the training loop restarts both (`restart` in
  `workers/actors.py`) and resumes from the last checkpoint (`train_with_recovery` in
  `demopsd_dist/training/recovery.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from demopsd_dist.config import Config
from demopsd_dist.util.errors import ConfigError, LostWorkerError, WorkerError
from workers.actor_group import ActorGroup
from workers.actor_handle import Handle, R, Ref
from workers.cluster.placement import rollout_bundle
from workers.cluster.resource_claim import ClaimTimeoutError, ResourceClaim
from workers.rollout.dispatch import AdmissionQueue, EngineMemoryLock, RolloutWorkers, SyncNewWorker
from workers.rollout.worker import RolloutWorker, environment

Say = Callable[[str], None]


class FixedPool:
    """Workers that are already started, for measurements and tests: none is replaced, and a loss ends the work."""

    def __init__(self, group: RolloutWorkers, config: Config) -> None:
        self.group, self.queue = group, AdmissionQueue(config.rollout.max_batch_sequences)
        self.sync_new_worker: SyncNewWorker | None = None
        self.memory = EngineMemoryLock()
        for rank in group.ranks:
            self.queue.open(rank)

    async def call(self, rank: int, call: Callable[[Handle[RolloutWorker]], Ref[R]], *, what: str) -> R:
        """Call one worker and wait for the result."""
        return await self.group.one(rank, call, what=what)

    def report_lost_worker(self, rank: int, error: LostWorkerError) -> None:
        """Raise the error."""
        raise error

    def report_success(self, rank: int) -> None:
        """Do nothing."""

    def metrics(self) -> dict[str, float]:
        """Return none: a fixed pool has nothing to count."""
        return {}


@dataclass
class PoolMember:
    """A rollout worker of the pool: starting, serving, leaving, or about to be replaced."""

    claim: ResourceClaim
    failures: list[str] = field(default_factory=list)  # since its last success
    start: asyncio.Task[None] | None = None
    leaving: bool = False


class RolloutPool:
    """Rollout workers, each an actor with a resource claim of its own.

    Args:
        random_weights: engines start with random weights; `sync_new_worker` sends the last publish, then the worker
            serves.
        say: prints a line for the user.
    """

    def __init__(
        self,
        config: Config,
        model_folder: Path,
        *,
        random_weights: bool,
        say: Say,
        worker_class: type[RolloutWorker] = RolloutWorker,
    ) -> None:
        self._config, self._folder, self._random_weights, self._say = config, model_folder, random_weights, say
        self._worker_class = worker_class
        self.group: RolloutWorkers = ActorGroup("rollout", {}, LostWorkerError)  # the workers that serve
        self.queue = AdmissionQueue(config.rollout.max_batch_sequences)
        self.sync_new_worker: SyncNewWorker | None = None
        self.memory = EngineMemoryLock()
        self._members: dict[int, PoolMember] = {}
        self._needed = config.rollout.min_workers or config.rollout.num_workers
        self._replaced = 0
        self._engines_may_start = asyncio.Event()
        self._waits_since_s = 0.0

    def let_engines_start(self) -> None:
        """Let engines start. Until then workers only import their libraries."""
        self._waits_since_s = time.monotonic()
        self._engines_may_start.set()

    async def start(self) -> None:
        """Start `rollout.num_workers` and return when `rollout.min_workers` serve; the rest may still be starting.

        Raises:
            WorkerError: fewer serve within `limits.start_s` after `let_engines_start`, or one of them failed.
        """
        wanted = self._config.rollout.num_workers
        self._add(wanted)
        starting = {member.start for member in self._members.values() if member.start is not None}
        while len(self.group) < self._needed or (starting and self._needed == wanted):
            done, starting = await asyncio.wait(
                starting, timeout=self._left_of_start_s(), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
            if (not done and self._left_of_start_s() <= 0) or (not starting and len(self.group) < self._needed):
                raise WorkerError(
                    f"{len(self.group)} of rollout.num_workers={wanted} rollout workers started within limits.start_s="
                    f"{self._config.limits.start_s:g} s; at least {self._needed} are needed (rollout.min_workers)."
                )
        if len(self.group) < wanted:
            self._say(
                f"starts with {len(self.group)} of {wanted} rollout workers; the rest join when resources are free"
            )
            for rank, member in self._members.items():
                if rank not in self.group and member.start is not None:
                    member.start = asyncio.ensure_future(self._keep_starting(rank, member.start, joins=True))

    def _left_of_start_s(self) -> float:
        """Seconds in which the first engines must serve. No time passes before
        `let_engines_start`: its caller limits that wait."""
        began_s = self._waits_since_s if self._engines_may_start.is_set() else time.monotonic()
        return max(0.0, began_s + self._config.limits.start_s + 5 - time.monotonic())

    async def call(self, rank: int, call: Callable[[Handle[RolloutWorker]], Ref[R]], *, what: str) -> R:
        """Call one worker, and check every `limits.silence_s` that it makes progress.

        Raises:
            LostWorkerError: it died or raised; or it made no progress for `limits.silence_s` during the call.
        """
        silence_s = self._config.limits.silence_s
        result = asyncio.ensure_future(self.group.one(rank, call, what=what))
        progress = -1
        try:
            while not (await asyncio.wait([result], timeout=silence_s))[0]:
                before, progress = progress, await self._progress(rank, silence_s, what)
                if progress == before:
                    raise LostWorkerError(
                        f"rollout {rank} hangs: no progress for limits.silence_s={silence_s:g} s on {what}."
                    )
            return result.result()
        finally:
            result.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await result  # also retrieves its error, so that asyncio does not warn of it

    async def _progress(self, rank: int, silence_s: float, what: str) -> int:
        try:
            return await asyncio.wait_for(
                self.group.one(rank, lambda worker: worker(RolloutWorker.progress), what="its progress"), silence_s
            )
        except TimeoutError:
            raise LostWorkerError(
                f"rollout {rank} hangs: no answer within limits.silence_s={silence_s:g} s, during {what}."
            ) from None

    def report_success(self, rank: int) -> None:
        """Forget the worker's earlier failures."""
        if rank in self._members:
            self._members[rank].failures.clear()

    def report_lost_worker(self, rank: int, error: LostWorkerError) -> None:
        """End the worker's process and start its replacement, unless that is already done."""
        member = self._members.get(rank)
        if member is None or rank not in self.group:
            return
        self.queue.close(rank)
        self.group.remove(rank)
        member.failures.append(str(error))
        if member.leaving:
            self._forget(rank)
        elif not self._give_up(rank):
            self._say(f"warning: {error} It is replaced, and its work done again.")
            self._replaced += 1
            member.start = asyncio.ensure_future(self._keep_starting(rank, self._start_member(rank)))

    async def resize(self, workers: int) -> None:
        """Add missing workers, or remove the last ones once their running sequences have ended.

        Returns when that number of workers serves. New workers that could not start are forgotten, so that a later call
        can add them.

        Raises:
            WorkerError: resources were not granted, or an engine did not start; or fewer workers serve
                `limits.start_s` later, since others of the run still wait for theirs.
            ConfigError: a node has other code.
        """
        members = sorted(self._members, key=lambda rank: (rank not in self.group, rank))  # those that serve stay
        staying = [rank for rank in members if not self._members[rank].leaving]
        self._needed = min(self._needed, workers)
        if workers > len(staying):
            added = self._add(workers - len(staying))
            starts = [task for rank in added if (task := self._members[rank].start)]
            results = await asyncio.gather(*starts, return_exceptions=True)
            failed = {
                rank: error for rank, error in zip(added, results, strict=True) if isinstance(error, BaseException)
            }
            for rank in failed:
                self._forget(rank)
            if failed:
                raise failed[min(failed)]
        else:
            await asyncio.gather(*(self._leave(rank) for rank in staying[workers:]))
        deadline = time.monotonic() + self._config.limits.start_s
        while len(self.group) < workers and (left_s := deadline - time.monotonic()) > 0:
            starts = [member.start for rank, member in self._members.items() if rank not in self.group and member.start]
            if not starts:
                break
            await asyncio.wait(starts, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if (missing := workers - len(self.group)) > 0:
            waiting = len(self._members) - len(self.group)
            raise WorkerError(
                f"{missing} rollout workers of the run have not started within limits.start_s="
                f"{self._config.limits.start_s:g} s; {waiting} of them still wait, and join when they can."
            )

    def metrics(self) -> dict[str, float]:
        """Number of serving workers, and of replacements since the start."""
        return {"rollout/workers": float(len(self.group)), "rollout/workers_replaced": float(self._replaced)}

    def stop(self) -> None:
        """End all workers and give their resources back."""
        self.group.kill()
        for rank in list(self._members):
            self._forget(rank)

    def _claim(self, rank: int) -> ResourceClaim:
        return ResourceClaim([rollout_bundle(self._config, rank)])

    def _spawn(self, claim: ResourceClaim) -> dict[int, Handle[RolloutWorker]]:
        env = environment(self._config)
        return claim.spawn("rollout", self._worker_class, lambda rank: (rank, self._config, self._folder), env)

    def _add(self, count: int) -> list[int]:
        first = max(self._members, default=-1) + 1
        added = list(range(first, first + count))
        for rank in added:
            self._members[rank] = PoolMember(self._claim(rank))
            self._members[rank].start = asyncio.ensure_future(self._start_member(rank))
        return added

    async def _start_member(self, rank: int) -> None:
        """Wait for the worker's resources and for free memory, then start its engine.

        Raises:
            WorkerError: the resources were not granted, or the engine did not start.
        """
        await self._members[rank].claim.ready(self._config.limits.start_s)
        async with self.memory.engine_start():
            await self._start_engine(rank)

    async def _start_engine(self, rank: int) -> None:
        limits, member = self._config.limits, self._members[rank]
        new_worker: RolloutWorkers = ActorGroup("rollout", self._spawn(member.claim), LostWorkerError)

        def serve() -> None:
            self.group.add(new_worker.handles)
            self.queue.open(rank)

        try:
            await new_worker.each(
                lambda worker, _: worker(RolloutWorker.import_libraries),
                within_s=limits.start_s,
                what="its libraries",
            )
            await self._engines_may_start.wait()
            await new_worker.each(
                lambda worker, _: worker(RolloutWorker.start, random_weights=self._random_weights),
                within_s=limits.start_s,
                what="vLLM engine",
            )
            if self.sync_new_worker is None:
                serve()
            else:
                await self.sync_new_worker(new_worker, serve)
        except BaseException:
            new_worker.kill()
            raise

    async def _keep_starting(self, rank: int, attempt: Awaitable[None], joins: bool = False) -> None:
        """Start a worker until it serves, or has failed too often.

        Args:
            attempt: its first start.
            joins: the run has started without it: it waits for its resources without a limit, and the run goes on
                where it is refused.
        """
        began, is_waiting = time.monotonic(), False
        while True:
            try:
                await attempt
            except WorkerError as error:
                if joins and isinstance(error, ClaimTimeoutError):
                    if not is_waiting:
                        self._say(f"rollout {rank} goes on waiting for its resources: {error}")
                    is_waiting = True
                else:
                    self._members[rank].failures.append(str(error))
                    if self._give_up(rank):
                        return
                    failed = "started" if joins else "replaced"
                    self._say(f"warning: rollout {rank} could not be {failed}, and is tried again: {error}")
            except ConfigError as error:
                self._refuse(rank, error, joins)
                return
            except Exception as error:  # a retry cannot fix it: wrong weights, for example
                self.queue.fail(error)
                return
            else:
                verb = "has joined" if joins else "is back"
                self._say(f"rollout {rank} {verb} after {time.monotonic() - began:.1f} s")
                return
            attempt = self._start_member(rank)

    def _refuse(self, rank: int, error: ConfigError, joins: bool) -> None:
        """Go on without a worker whose node cannot be used, if the run has started without it; else fail the run."""
        if joins:
            self._say(f"warning: rollout {rank} cannot join, and the run goes on without it: {error}")
            self._forget(rank)
        else:
            self.queue.fail(error)

    def _give_up(self, rank: int) -> bool:
        """Drop the worker if it failed more than `limits.restarts` times; fail the run if too few workers are left."""
        failures, restarts = self._members[rank].failures, self._config.limits.restarts
        if len(failures) <= restarts:
            return False
        history = f"rollout {rank} failed {len(failures)} times (limits.restarts={restarts}): " + "  ".join(failures)
        self._forget(rank)
        if len(self._members) < self._needed:
            self.queue.fail(WorkerError(f"{history}  {len(self._members)} of {self._needed} needed workers are left."))
        else:
            self._say(f"warning: {history}  The run goes on with {len(self._members)}.")
        return True

    async def _leave(self, rank: int) -> None:
        """Remove a worker once its running sequences have ended, or `limits.call_s` have passed."""
        member = self._members[rank]
        member.leaving = True
        if member.start is not None and not member.start.done():
            member.start.cancel()
        self.queue.close(rank)
        deadline = time.monotonic() + self._config.limits.call_s
        while rank in self.queue.busy and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        if rank in self.group:
            self.group.remove(rank)
        self._forget(rank)

    def _forget(self, rank: int) -> None:
        if (member := self._members.pop(rank, None)) is not None:
            member.claim.release()
