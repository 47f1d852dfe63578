"""Claims of cluster resources (Ray placement groups), and the actors that are spawned on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from demopsd_dist.util.errors import WorkerError
from workers.actor_group import ActorGroup
from workers.actor_handle import Handle
from workers.cluster.code_check import refuse_other_code
from workers.cluster.placement import Bundle

W = TypeVar("W")


class ClaimTimeoutError(WorkerError):
    """The cluster has not granted a claim in time. The claim stands, and may be granted later."""


class ResourceClaim:
    """Resources claimed together: all bundles are granted, or none."""

    def __init__(self, bundles: Sequence[Bundle]) -> None:
        self._bundles = list(bundles)
        needs = [{"CPU": b.cpus} | ({"GPU": b.gpus} if b.gpus else {}) for b in self._bundles]
        labels = [b.label for b in self._bundles]
        self._group: PlacementGroup | None = (
            placement_group(needs, strategy="PACK", bundle_label_selector=labels) if needs else None
        )

    async def ready(self, within_s: float) -> None:
        """Wait until the claim is granted.

        Raises:
            ClaimTimeoutError: the cluster did not grant it in time.
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
            raise ClaimTimeoutError(
                f"the cluster did not place {wanted} within limits.start_s={within_s:g} s; it has "
                f"{ray.available_resources()} free."
            )
        nodes = placement_group_table(self._group)["bundles_to_node_id"].values()
        await refuse_other_code(filter(None, nodes), within_s)

    def spawn(
        self, role: str, worker_class: type[W], arguments: Callable[[int], tuple[Any, ...]], env: dict[str, str]
    ) -> dict[int, Handle[W]]:
        """Spawn one actor on each of the role's bundles, by rank. They come up when the claim is granted.

        Args:
            arguments: of the worker's constructor, by rank.
            env: environment variables of the actors' processes.
        """
        handles = {}
        for index, bundle in enumerate(self._bundles):
            if bundle.role == role:
                options = ray.remote(worker_class).options(
                    num_cpus=bundle.cpus,
                    num_gpus=bundle.gpus,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, index),
                    runtime_env={"env_vars": env},
                )
                handles[bundle.rank] = Handle[W](options.remote(*arguments(bundle.rank)))
        return handles

    def spawn_group(
        self,
        role: str,
        worker_class: type[W],
        arguments: Callable[[int], tuple[Any, ...]],
        env: dict[str, str],
        lost_error: type[WorkerError],
    ) -> ActorGroup[W]:
        """Spawn the role's actors (see `spawn`) as a group."""
        return ActorGroup(role, self.spawn(role, worker_class, arguments, env), lost_error)

    def release(self) -> None:
        """Give the resources back."""
        if self._group is not None:
            remove_placement_group(self._group)
