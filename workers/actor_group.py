"""Groups of Ray actors: start them, ask all of them at once, and never wait without a bound."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from demopsd_dist.util.errors import DemoPSDError, LostStateError, LostWorkerError, WorkerError
from workers.cluster.code_check import refuse_other_checkouts
from workers.cluster.placement import Bundle

SECOND_LOOK_S = 2.0
PEER_GONE = re.compile(r"gloo|nccl|connection (closed|reset|refused)|peer", re.IGNORECASE)  # in a collective's error
Call = Callable[[Any, int], Any]  # (actor handle, rank) -> object ref


class PendingCall(NamedTuple):
    """A remote call that is under way."""

    rank: int
    ref: Any


class ResourceClaim:
    """Resources claimed together: all bundles get theirs, or none."""

    def __init__(self, bundles: Sequence[Bundle]) -> None:
        self._bundles = list(bundles)
        needs = [{"CPU": b.cpus} | ({"GPU": b.gpus} if b.gpus else {}) for b in self._bundles]
        labels = [b.label for b in self._bundles]
        self._group: PlacementGroup | None = (
            placement_group(needs, strategy="PACK", bundle_label_selector=labels) if needs else None
        )

    async def ready(self, within_s: float) -> None:
        """Wait for the claim.

        Raises:
            WorkerError: the cluster did not grant it in time.
            ConfigError: it granted a node that has other code.
        """
        if self._group is None:
            return
        claim = asyncio.wrap_future(self._group.ready().future())
        _, waiting = await asyncio.wait([claim], timeout=within_s)
        if waiting:
            claim.cancel()
            wanted = ", ".join(
                f"{b.role} {b.rank} ({b.cpus:g} CPU, {b.gpus} GPU" + f", {b.nodes}" * bool(b.nodes) + ")"
                for b in self._bundles
            )
            raise WorkerError(
                f"the cluster did not place {wanted} within limits.start_s={within_s:g} s; it has "
                f"{ray.available_resources()} free."
            )
        nodes = placement_group_table(self._group)["bundles_to_node_id"].values()
        await refuse_other_checkouts(filter(None, nodes), within_s)

    def spawn(
        self, role: str, actor: type, arguments: Callable[[int], tuple[Any, ...]], env: dict[str, str]
    ) -> dict[int, Any]:
        """One actor for each of the role's bundles, by rank; it comes to life when the claim is granted."""
        handles = {}
        for index, bundle in enumerate(self._bundles):
            if bundle.role == role:
                options = ray.remote(actor).options(
                    num_cpus=bundle.cpus,
                    num_gpus=bundle.gpus,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, index),
                    runtime_env={"env_vars": env},
                )
                handles[bundle.rank] = options.remote(*arguments(bundle.rank))
        return handles

    def start(
        self, role: str, actor: type, arguments: Callable[[int], tuple[Any, ...]], env: dict[str, str]
    ) -> ActorGroup:
        return ActorGroup(role, self.spawn(role, actor, arguments, env))

    def release(self) -> None:
        if self._group is not None:
            remove_placement_group(self._group)


class ActorGroup:
    """The actors of one role, by rank. Rollout workers come and go; the others stay, or are all made anew."""

    def __init__(self, role: str, handles: Mapping[int, Any]) -> None:
        self.role = role
        self._handles = dict(handles)
        self._lost: type[WorkerError] = LostWorkerError if role == "rollout" else LostStateError
        self.asked = 0  # remote calls of all actors so far, but for those of `one`

    def __len__(self) -> int:
        return len(self._handles)

    def __contains__(self, rank: object) -> bool:
        return rank in self._handles

    @property
    def handles(self) -> dict[int, Any]:
        return dict(self._handles)

    @property
    def ranks(self) -> list[int]:
        return sorted(self._handles)

    def put(self, handles: Mapping[int, Any]) -> None:
        self._handles |= handles

    def remove(self, rank: int) -> None:
        """End the actor, if it has not ended."""
        self._end(self._handles.pop(rank))

    def _end(self, handle: Any) -> None:
        ray.kill(handle)

    def _cancel(self, ref: Any) -> None:
        ray.cancel(ref)

    async def one(self, rank: int, call: Callable[[Any], Any], *, what: str) -> Any:
        """Ask one actor. Cancelling the wait cancels the call. Whoever waits sets the bound.

        Raises:
            WorkerError: as for `each`.
        """
        if rank not in self._handles:
            raise self._lost(f"{self.role} {rank} is gone: {what}.")
        ref = call(self._handles[rank])
        try:
            return await asyncio.wrap_future(ref.future())
        except asyncio.CancelledError:
            self._cancel(ref)
            raise
        except Exception as error:
            raise self._explained(error, rank, what) from None

    async def each(self, call: Call, *, within_s: float, what: str) -> list[Any]:
        """Ask every actor and wait for all the answers, in rank order.

        Args:
            call: starts the remote call: `lambda worker, rank: worker.step.remote(shards[rank])`.
            within_s: bound of the whole wait, seconds.
            what: what is waited for, for the message.

        Raises:
            LostWorkerError, LostStateError: an actor died, or did not answer in time.
            WorkerError: an actor raised. Its own `DemoPSDError` comes as it is.
        """
        return await self.answers(self.ask(call), within_s=within_s, what=what)

    def ask(self, call: Call) -> list[PendingCall]:
        """Start a call of every actor, in rank order."""
        self.asked += len(self._handles)
        return [PendingCall(rank, call(self._handles[rank], rank)) for rank in self.ranks]

    async def answers(self, asked: Sequence[PendingCall], *, within_s: float, what: str) -> list[Any]:
        """Wait for what was asked, once or several times, in the order of `asked`.

        Raises:
            WorkerError: as for `each`.
        """
        if not asked:
            return []
        futures = {asyncio.wrap_future(ref.future()): rank for rank, ref in asked}
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
            raise self._lost(f"{self.role} {silent} did not answer within {within_s:g} s: {what}.")
        return [future.result() for future in futures]

    def _explained(self, error: BaseException, rank: int, what: str) -> BaseException:
        cause = getattr(error, "cause", None)
        if isinstance(cause, DemoPSDError):
            return cause
        if isinstance(error, RayActorError):
            return self._lost(f"{self.role} {rank} died while it was asked for {what}. {_last_words(error)}")
        if isinstance(error, RayTaskError):
            peer_gone = len(self) > 1 and PEER_GONE.search(str(error))
            kind = self._lost if peer_gone or self._lost is LostWorkerError else WorkerError
            return kind(f"{self.role} {rank} failed on {what}.\n{error}")
        return error

    def kill(self) -> None:
        for rank in self.ranks:
            self.remove(rank)


def _last_words(error: RayActorError) -> str:
    """Ray's account of a death on one line, without its list of possible causes and where to read more."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next(
        (line for line in lines if "exit" in line.lower() or "killed" in line.lower()), lines[0] if lines else ""
    )
    return told.partition(" Some common causes")[0]
