"""The driver's `weights` role: learners to rollout workers and teacher, bucket by bucket, verified."""

from __future__ import annotations

import asyncio
from typing import Any

from demopsd_dist.config import Config, Transport
from workers.group import SECOND_LOOK_S, ActorGroup
from workers.probe import LogpT, probe_tokens, refuse_kept_weights, refuse_other_weights
from workers.transports import Plan, Segment, chosen
from workers.weights import Parcel, Receipt


class WeightPublisher:
    """All receivers load at once, each bucket while the learners gather the next.

    A publish makes one call to each learner for each bucket and one for the probe, and one to each receiver: their
    number does not grow with the number of tensors.
    """

    plan: Plan
    transport: Transport
    segment: Segment | None  # that of the shared memory

    def __init__(self, learners: ActorGroup, rollouts: ActorGroup, teacher: ActorGroup, config: Config) -> None:
        self._learners, self._rollouts, self._teacher, self._config = learners, rollouts, teacher, config
        self._receivers = (rollouts, teacher)
        self._said: dict[int, tuple[LogpT, LogpT]] = {}  # of the probe, by rank of the engine: learner, engine
        self.parcels: list[Parcel] = []  # of the last publish
        self.receipts: list[Receipt] = []

    async def start(self) -> None:
        """Agree on what is sent, and on the way.

        Raises:
            ConfigError: `weights.transport` cannot reach all receivers.
        """
        within_s = self._config.limits.start_s
        plans: list[Plan] = await self._learners.each(
            lambda worker, _: worker.plan.remote(), within_s=within_s, what="what it will publish"
        )
        self.plan = plan = plans[0]
        nodes = {
            f"{group.role} {rank}": node
            for group in self._receivers
            for rank, node in enumerate(
                await group.each(lambda worker, _: worker.node.remote(), within_s=within_s, what="its node")
            )
        }
        self.transport = chosen(self._config.weights.transport, plan.node, nodes)
        self.segment, *_ = await self._learners.each(
            lambda worker, _: worker.open_outbox.remote(self.transport), within_s=within_s, what="memory for weights"
        )
        for group in self._receivers:
            await group.each(
                lambda worker, _: worker.attach.remote(plan, self.segment),
                within_s=within_s,
                what="mapping shared memory",
            )
        self._probe = probe_tokens(plan.vocabulary_size, self._config.rollout.max_prompt_tokens)

    async def publish(self, version: int, *, moved: bool = True) -> None:
        call_s = self._config.limits.call_s
        if not moved:
            await self._rollouts.each(
                lambda worker, _: worker.adopt.remote(version), within_s=call_s, what=f"version {version}"
            )
            return
        said, self._said = self._said, {}
        sent = [self._learners.ask(_gather(version, index)) for index in range(len(self.plan.buckets))]
        probed = self._learners.ask(lambda worker, _: worker.probe.remote(self._probe))
        parcels = [refs[0] for refs in sent]
        received = (
            self._rollouts.ask(lambda worker, _: worker.receive.remote(version, parcels, self._probe)),
            self._teacher.ask(lambda worker, _: worker.receive.remote(version, parcels)),
        )
        what = f"weights version {version}"
        by_learners, by_rollouts, by_teacher = await first_to_blame(
            self._learners.answers([ref for refs in [*sent, probed] for ref in refs], within_s=call_s, what=what),
            self._rollouts.answers(received[0], within_s=call_s, what=f"receipt of {what}"),
            self._teacher.answers(received[1], within_s=call_s, what=f"receipt of {what}"),
        )
        ranks = len(self._learners)
        self.parcels, self.receipts = by_learners[:-ranks:ranks], [*by_rollouts, *by_teacher]
        self._compare(version, by_learners[-ranks], by_rollouts, said)

    def _compare(
        self, version: int, learner_T: LogpT, receipts: list[Receipt], said: dict[int, tuple[LogpT, LogpT]]
    ) -> None:
        for rank, receipt in enumerate(receipts):
            name, engine_T = f"rollout {rank}", receipt.probe_logp_T
            assert engine_T is not None
            refuse_other_weights(name, version, learner_T, engine_T, self._config.weights.max_logp_diff)
            if rank in said:
                before_learner_T, before_engine_T = said[rank]
                refuse_kept_weights(name, version, (before_learner_T, learner_T), (before_engine_T, engine_T))
            self._said[rank] = (learner_T, engine_T)


def _gather(version: int, index: int) -> Any:
    return lambda worker, _: worker.gather.remote(version, index)


async def first_to_blame(*waits: Any) -> list[Any]:
    """Wait for all. Of several failures at about the same time the one named first here is raised: a receiver that
    waits for a learner fails when that dies."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        _, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if waiting:
            await asyncio.wait(waiting, timeout=SECOND_LOOK_S + 1)
        errors = [error for task in tasks if task.done() and (error := task.exception())]
        if errors:
            raise errors[0]
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
