"""Groups of Ray actors, one a role: call all of them at once, wait within a time limit, and name the actor that failed.

Errors say what kind of loss it is. A lost rollout worker (`LostWorkerError`) is replaced (`workers/rollout/pool.py`);
a lost learner or teacher (`LostStateError`) sends the run back to its last checkpoint.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple

from ray.exceptions import RayActorError, RayTaskError

from demopsd_dist.util.errors import BrokenGroupError, DemoPSDError, LostWorkerError, WorkerError
from workers.actor_handle import Handle, R, Ref, W_co
from workers.cluster.crash_report import crash_report

# wait after a first failure: another actor may report the loss of a peer before the peer's own death is seen
OTHER_FAILURES_S = 2.0
# matches the text of a collective's error
PEER_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|peer", re.IGNORECASE)


class PendingCall(NamedTuple, Generic[R]):
    """A remote call that is under way."""

    rank: int
    ref: Ref[R]


class ActorGroup(Generic[W_co]):
    """The actors of one role, by rank.

    Args:
        role: for messages ("rollout").
        lost_error: class of the error for an actor that died or does not answer.
    """

    def __init__(self, role: str, handles: Mapping[int, Handle[W_co]], lost_error: type[WorkerError]) -> None:
        self.role = role
        self._handles = dict(handles)
        self._lost_error = lost_error
        self.call_count = 0  # remote calls of all actors so far; `one` is not counted

    def __len__(self) -> int:
        return len(self._handles)

    def __contains__(self, rank: object) -> bool:
        return rank in self._handles

    @property
    def handles(self) -> dict[int, Handle[W_co]]:
        """The actors' handles, by rank."""
        return dict(self._handles)

    @property
    def ranks(self) -> list[int]:
        """Ranks of the actors, ascending."""
        return sorted(self._handles)

    def add(self, handles: Mapping[int, Handle[W_co]]) -> None:
        """Add actors, by rank."""
        self._handles |= handles

    def remove(self, rank: int) -> None:
        """End the actor, if it has not ended, and drop it from the group."""
        self._handles.pop(rank).kill()

    async def one(self, rank: int, call: Callable[[Handle[W_co]], Ref[R]], *, what: str) -> R:
        """Call one actor. Cancelling the wait cancels the call. The caller sets the time limit.

        Raises:
            WorkerError: as for `each`.
        """
        if rank not in self._handles:
            raise self._lost_error(f"{self.role} {rank} has ended before this call: {what}.")
        handle = self._handles[rank]
        ref = call(handle)
        try:
            return await asyncio.wrap_future(ref.future())
        except asyncio.CancelledError:
            handle.cancel(ref)
            raise
        except Exception as error:
            raise self._worker_error(error, rank, what) from None

    async def each(self, call: Callable[[Handle[W_co], int], Ref[R]], *, within_s: float, what: str) -> list[R]:
        """Call every actor and wait for all the results, in rank order.

        Args:
            call: starts the remote call: `lambda worker, rank: worker(LearnerWorker.step, shards[rank])`.
            within_s: time limit for all results together, seconds.
            what: name of the result or action, for messages.

        Raises:
            LostWorkerError, LostStateError: an actor died, or did not answer in time.
            WorkerError: an actor raised another error than a `DemoPSDError`, which is raised unchanged.
        """
        return await self.collect(self.start(call), within_s=within_s, what=what)

    def start(self, call: Callable[[Handle[W_co], int], Ref[R]]) -> list[PendingCall[R]]:
        """Start a call of every actor, in rank order."""
        self.call_count += len(self._handles)
        return [PendingCall(rank, call(self._handles[rank], rank)) for rank in self.ranks]

    def start_one(self, rank: int, call: Callable[[Handle[W_co]], Ref[R]]) -> PendingCall[R]:
        """Start a call of one actor."""
        self.call_count += 1
        return PendingCall(rank, call(self._handles[rank]))

    async def collect(self, pending: Sequence[PendingCall[R]], *, within_s: float, what: str) -> list[R]:
        """Wait for calls that were started, one or several an actor; results in the order of `pending`.

        Raises:
            WorkerError: as for `each`.
        """
        if not pending:
            return []
        futures = {asyncio.wrap_future(call.ref.future()): call.rank for call in pending}
        try:
            done, waiting = await asyncio.wait(futures, timeout=within_s, return_when=asyncio.FIRST_EXCEPTION)
            if any(future.exception() for future in done) and waiting:
                late, waiting = await asyncio.wait(waiting, timeout=OTHER_FAILURES_S)
                done |= late
        finally:
            for future in futures:
                future.cancel()  # pending ones, also when this wait is cancelled
        failures: dict[int, BaseException] = {}
        for future, rank in futures.items():  # the first failure of each actor
            if future in done and (error := future.exception()) is not None:
                failures.setdefault(rank, error)
        if failures:
            rank = min(failures, key=lambda rank: (*_distance(failures[rank]), rank))
            raise self._worker_error(failures[rank], rank, what) from None
        if waiting:
            late_ranks = sorted({futures[future] for future in waiting})
            raise self._lost_error(f"{self.role} {late_ranks} did not answer within {within_s:g} s: {what}.")
        return [future.result() for future in futures]

    def _worker_error(self, error: BaseException, rank: int, what: str) -> BaseException:
        """The project's error for a failed call: the worker's own, or one that names the actor and the call."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, DemoPSDError):
            return cause
        if isinstance(error, RayActorError):
            how = f"{_death_cause(error)} {crash_report(str(error))}".rstrip()
            death = self._lost_error(f"{self.role} {rank} died during this call: {what}. {how}")
            death.died = True
            return death
        if isinstance(error, RayTaskError):
            peer_lost = len(self) > 1 and PEER_LOST.search(str(error))
            lost = peer_lost or self._lost_error is LostWorkerError
            return (self._lost_error if lost else WorkerError)(f"{self.role} {rank} failed on {what}.\n{error}")
        return error

    def kill(self) -> None:
        """End all actors."""
        for rank in self.ranks:
            self.remove(rank)


def no_actors(role: str) -> ActorGroup[Any]:
    """A group without actors, for runs that have none of the role."""
    return ActorGroup(role, {}, WorkerError)


async def gather_root_cause(*waits: Awaitable[Any]) -> list[Any]:
    """Wait for all results. Of several failures at about the same time, raise the one that comes first in the
    arguments: a receiver that waits for a learner fails when that learner dies, and the learner's error is the
    cause. A broken process group comes last: all its members report it, and one of them may know why."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        _, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if waiting:
            await asyncio.wait(waiting, timeout=OTHER_FAILURES_S + 1)
        errors = [error for task in tasks if task.done() and (error := task.exception())]
        if errors:
            raise min(errors, key=lambda error: isinstance(error, BrokenGroupError))
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()


def _distance(error: BaseException) -> tuple[bool, bool]:
    """Distance of an actor's error from the cause of a failure: a death is the cause, a broken group a consequence."""
    return not isinstance(error, RayActorError), isinstance(getattr(error, "cause", None), BrokenGroupError)


def _death_cause(error: RayActorError) -> str:
    """Ray's account of a death on one line, without its list of possible causes and where to read more."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = next(
        (line for line in lines if "exit" in line.lower() or "killed" in line.lower()), lines[0] if lines else ""
    )
    return cause.partition(" Some common causes")[0]
