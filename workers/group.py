"""Groups of Ray actors: start them, ask all of them at once, and never wait without a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from demopsd_dist.errors import DemoPSDError, WorkerError
from workers.placement import Bundle

Call = Callable[[Any, int], Any]  # (actor handle, rank) -> object ref


class Placement:
    """The resources of a run, claimed together: all roles get theirs, or the start fails by name."""

    def __init__(self, bundles: Sequence[Bundle], start_s: float) -> None:
        self._bundles = list(bundles)
        needs = [{"CPU": b.cpus} | ({"GPU": b.gpus} if b.gpus else {}) for b in self._bundles]
        self._group: PlacementGroup = placement_group(needs, strategy="PACK")
        try:
            ray.get(self._group.ready(), timeout=start_s)
        except GetTimeoutError:
            raise WorkerError(
                f"the cluster did not place {len(self._bundles)} actors within limits.start_s={start_s:g} s. It offers "
                f"{ray.available_resources()}."
            ) from None

    def start(
        self, role: str, actor: type, arguments: Callable[[int], tuple[Any, ...]], env: dict[str, str]
    ) -> ActorGroup:
        """One actor for each of the role's bundles, in rank order; construction goes on in the background."""
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

    def __len__(self) -> int:
        return len(self._handles)

    async def each(self, call: Call, *, within_s: float, what: str) -> list[Any]:
        """Ask every actor and wait for all the answers.

        Args:
            call: starts the remote call: `lambda worker, rank: worker.step.remote(shards[rank])`.
            within_s: bound of the whole wait, seconds.
            what: what is waited for, for the message.

        Raises:
            WorkerError: an actor died, raised, or did not answer in time. An actor's own `DemoPSDError` comes as it is.
        """
        refs = [call(handle, rank) for rank, handle in enumerate(self._handles)]
        try:
            return await asyncio.wait_for(asyncio.gather(*refs), timeout=within_s)
        except TimeoutError:
            _, waiting = ray.wait(refs, num_returns=len(refs), timeout=0)
            silent = [rank for rank, ref in enumerate(refs) if ref in waiting]
            raise WorkerError(f"{self.role} {silent} did not answer within {within_s:g} s: {what}.") from None
        except RayTaskError as error:
            if isinstance(error.cause, DemoPSDError):
                raise error.cause from None
            raise WorkerError(f"{self.role} failed: {what}.\n{error}") from None
        except RayActorError as error:
            raise WorkerError(f"{self.role} died: {what}. {error}") from None

    def kill(self) -> None:
        for handle in self._handles:
            ray.kill(handle)
