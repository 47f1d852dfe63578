"""Groups of Ray actors: start them, ask all of them at once, and never wait without a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from demopsd_dist.errors import DemoPSDError, WorkerError
from workers.placement import Bundle

SECOND_LOOK_S = 2.0
Call = Callable[[Any, int], Any]  # (actor handle, rank) -> object ref


class Placement:
    """The resources of a run, claimed together: all roles get theirs, or the start fails by name."""

    def __init__(self, bundles: Sequence[Bundle]) -> None:
        self._bundles = list(bundles)
        needs = [{"CPU": b.cpus} | ({"GPU": b.gpus} if b.gpus else {}) for b in self._bundles]
        self._group: PlacementGroup = placement_group(needs, strategy="PACK")

    async def ready(self, within_s: float) -> None:
        """Wait for the claim.

        Raises:
            WorkerError: the cluster did not grant it in time.
        """
        claim = asyncio.wrap_future(self._group.ready().future())
        _, waiting = await asyncio.wait([claim], timeout=within_s)
        if waiting:
            claim.cancel()
            raise WorkerError(
                f"the cluster did not place {len(self._bundles)} actors within limits.start_s={within_s:g} s; it has "
                f"{ray.available_resources()} free."
            )

    def start(
        self, role: str, actor: type, arguments: Callable[[int], tuple[Any, ...]], env: dict[str, str]
    ) -> ActorGroup:
        """One actor for each of the role's bundles, in rank order; it comes to life when the claim is granted."""
        handles = []
        for index, bundle in enumerate(self._bundles):
            if bundle.role == role:
                options = ray.remote(actor).options(
                    num_cpus=bundle.cpus,
                    num_gpus=bundle.gpus,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, index),
                    runtime_env={"env_vars": env},
                )
                handles.append(options.remote(*arguments(bundle.rank)))
        return ActorGroup(role, handles)

    def release(self) -> None:
        remove_placement_group(self._group)


class ActorGroup:
    """The actors of one role, in rank order."""

    def __init__(self, role: str, handles: list[Any]) -> None:
        self.role = role
        self._handles = handles
        self.asked = 0  # remote calls of all actors so far, but for those of `one`

    def __len__(self) -> int:
        return len(self._handles)

    async def one(self, rank: int, call: Callable[[Any], Any], *, what: str) -> Any:
        """Ask one actor. Cancelling the wait cancels the call. Whoever waits sets the bound.

        Raises:
            WorkerError: as for `each`.
        """
        ref = call(self._handles[rank])
        try:
            return await asyncio.wrap_future(ref.future())
        except asyncio.CancelledError:
            ray.cancel(ref)
            raise
        except Exception as error:
            raise self._explained(error, rank, what) from None

    async def each(self, call: Call, *, within_s: float, what: str) -> list[Any]:
        """Ask every actor and wait for all the answers.

        Args:
            call: starts the remote call: `lambda worker, rank: worker.step.remote(shards[rank])`.
            within_s: bound of the whole wait, seconds.
            what: what is waited for, for the message.

        Raises:
            WorkerError: an actor died, raised, or did not answer in time. An actor's own `DemoPSDError` comes as it is.
        """
        return await self.answers(self.ask(call), within_s=within_s, what=what)

    def ask(self, call: Call) -> list[ray.ObjectRef]:
        """Start a call of every actor, in rank order."""
        self.asked += len(self._handles)
        return [call(handle, rank) for rank, handle in enumerate(self._handles)]

    async def answers(self, refs: Sequence[ray.ObjectRef], *, within_s: float, what: str) -> list[Any]:
        """Wait for what was asked, once or several times: `refs` are those of `ask`, one list after the other.

        Raises:
            WorkerError: as for `each`.
        """
        if not refs:
            return []
        futures = {asyncio.wrap_future(ref.future()): i % len(self._handles) for i, ref in enumerate(refs)}
        try:
            done, waiting = await asyncio.wait(futures, timeout=within_s, return_when=asyncio.FIRST_EXCEPTION)
            if any(future.exception() for future in done) and waiting:  # a peer's death may show in others first
                others, waiting = await asyncio.wait(waiting, timeout=SECOND_LOOK_S)
                done |= others
        finally:
            for future in futures:
                future.cancel()  # those still open; also when we are cancelled ourselves
        failed: dict[int, BaseException] = {}
        for future, rank in futures.items():  # of an actor its first failure
            if future in done and (error := future.exception()) is not None:
                failed.setdefault(rank, error)
        if failed:
            rank = min(failed, key=lambda rank: (not isinstance(failed[rank], RayActorError), rank))
            raise self._explained(failed[rank], rank, what) from None
        if waiting:
            silent = sorted({futures[future] for future in waiting})
            raise WorkerError(f"{self.role} {silent} did not answer within {within_s:g} s: {what}.")
        return [future.result() for future in futures]

    def _explained(self, error: BaseException, rank: int, what: str) -> BaseException:
        cause = getattr(error, "cause", None)
        if isinstance(cause, DemoPSDError):
            return cause
        if isinstance(error, RayActorError):
            return WorkerError(f"{self.role} {rank} died while it was asked for {what}. {_last_words(error)}")
        if isinstance(error, RayTaskError):
            return WorkerError(f"{self.role} {rank} failed on {what}.\n{error}")
        return error

    def kill(self) -> None:
        for handle in self._handles:
            ray.kill(handle)


def _last_words(error: RayActorError) -> str:
    """Ray's account of a death on one line, without its list of possible causes and where to read more."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next(
        (line for line in lines if "exit" in line.lower() or "killed" in line.lower()), lines[0] if lines else ""
    )
