"""The driver's `weights` role: learners to rollout workers and teacher, bucket by bucket, verified."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from demopsd_dist.config import Config, Transport
from demopsd_dist.util.errors import LostStateError, LostWorkerError
from workers.actor_group import SECOND_LOOK_S, ActorGroup
from workers.rollout.dispatch import Pool
from workers.weights.buckets import Ack, BucketRef
from workers.weights.canary import LogpT, probe_tokens, refuse_kept_weights, refuse_other_weights
from workers.weights.transports import PublishPlan, SharedSegment, chosen


@dataclass(frozen=True)
class LastPublish:
    """What was published last, and can still be fetched. Steps that learned nothing have made versions since."""

    version: int
    sent: int
    bucket_refs: Sequence[Any]  # references
    probe_T: LogpT  # what the learner says of the probe


class WeightPublisher:
    """All receivers load at once, each bucket while the learners gather the next.

    A publish makes one call to each learner for each bucket and one for the probe, and one to each receiver: their
    number does not grow with the number of tensors. What was published last stays where it is until the next publish,
    for workers that join in between.
    """

    plan: PublishPlan
    transport: Transport
    segment: SharedSegment | None  # that of the shared memory

    def __init__(self, learners: ActorGroup, fleet: Pool, teacher: ActorGroup, config: Config) -> None:
        self._learners, self._fleet, self._teacher, self._config = learners, fleet, teacher, config
        self._said: dict[int, tuple[LogpT, LogpT]] = {}  # of the probe, by rank of the engine: learner, engine
        self._last: LastPublish | None = None
        self._busy = asyncio.Lock()
        self._wanted = config.weights.transport
        self._published = asyncio.Event()
        self.bucket_refs: list[BucketRef] = []  # of the last publish
        self.acks: list[Ack] = []
        fleet.sync_new_worker = self.sync_new_worker

    async def start(self) -> None:
        """Agree on what is sent, and on the way.

        Raises:
            ConfigError: `weights.transport` cannot reach all receivers.
        """
        within_s = self._config.limits.start_s
        self._said, self._last = {}, None
        plans: list[PublishPlan] = await self._learners.each(
            lambda worker, _: worker.plan.remote(), within_s=within_s, what="what it will publish"
        )
        self.plan = plans[0]
        nodes: dict[str, str] = {}
        for group in (self._fleet.group, self._teacher):
            nodes |= await nodes_of(group, within_s)
        self.transport = chosen(self._wanted, self.plan.node, nodes)
        self.segment, *_ = await self._learners.each(
            lambda worker, _: worker.open_outbox.remote(self.transport), within_s=within_s, what="memory for weights"
        )
        for group in (self._fleet.group, self._teacher):
            await self._attach(group)
        self._probe = probe_tokens(self.plan.vocabulary_size, self._config.rollout.max_prompt_tokens)

    async def renew(self) -> None:
        """`start`, with learners that have taken the place of others."""
        async with self._busy:
            await self.start()

    async def _attach(self, group: ActorGroup) -> None:
        plan, segment = self.plan, self.segment
        await group.each(
            lambda worker, _: worker.attach.remote(plan, segment),
            within_s=self._config.limits.start_s,
            what="mapping shared memory",
        )

    async def sync_new_worker(self, newcomer: ActorGroup, serve: Callable[[], None]) -> None:
        """Bring a rollout worker that joins to what was published last; then it serves.

        Raises:
            WeightSyncError: what arrived is not what was sent.
            ConfigError: it is on another node, where `weights.transport=shared_memory` does not reach.
        """
        if not hasattr(self, "plan"):  # before the learners have said what they will publish
            return serve()
        while True:
            segment = self.segment
            try:
                return await self._sync_new_worker(newcomer, serve)
            except LostStateError:  # the learners are gone; others will take their place, or the run ends
                while self.segment == segment:
                    await asyncio.sleep(0.1)

    async def _sync_new_worker(self, newcomer: ActorGroup, serve: Callable[[], None]) -> None:
        nodes = await nodes_of(newcomer, self._config.limits.start_s)
        if chosen(self._wanted, self.plan.node, nodes) is not self.transport is Transport.shared_memory:
            self._wanted = Transport.object_store
            self._published.clear()
            await self._published.wait()  # the next publish goes another way
        async with self._busy:
            await self._attach(newcomer)
            if self._last is not None:
                last, call_s = self._last, self._config.limits.call_s
                acks = await newcomer.each(
                    lambda worker, _: worker.receive.remote(last.sent, last.bucket_refs, self._probe),
                    within_s=call_s,
                    what=f"ack of weights version {last.sent}",
                )
                self._compare(last.sent, last.probe_T, dict(zip(newcomer.ranks, acks, strict=True)))
                if last.version != last.sent:
                    await newcomer.each(
                        lambda worker, _: worker.mark_version.remote(last.version), within_s=call_s, what="a version"
                    )
            return serve()

    async def publish(self, version: int, *, moved: bool = True) -> None:
        async with self._busy:
            if not moved and self._last is not None:
                if self._fleet.room.taken:
                    await self._send_again(self._last)
                self._last = replace(self._last, version=version)
                await self._by_rollouts(lambda worker: worker.mark_version.remote(version), f"version {version}")
            else:
                await self._publish(version)
        self._fleet.room.open()
        self._published.set()

    async def make_room(self) -> None:
        """Engines that share a GPU with the learners sleep until the next publish, where they are to, and none starts
        before it."""
        if not self._config.rollout.sleep:
            return
        await self._fleet.room.close(self._config.limits.start_s)
        async with self._busy:
            await self._by_rollouts(lambda worker: worker.sleep.remote(), "sleep")

    async def _send_again(self, last: LastPublish) -> None:
        """To engines that have slept since: it is all that they lost. The teacher has taken it in."""
        what = f"ack of weights version {last.sent}"
        answers = await self._by_rollouts(
            lambda worker: worker.receive.remote(last.sent, last.bucket_refs, self._probe), what
        )
        self._said.clear()
        self._compare(last.sent, last.probe_T, acks_of(answers))

    async def _publish(self, version: int) -> None:
        call_s, what = self._config.limits.call_s, f"weights version {version}"
        if self._wanted is Transport.object_store is not self.transport:
            await self.start()
        self._last = None  # its memory is written anew
        sent = [self._learners.ask(_gather(version, index)) for index in range(len(self.plan.buckets))]
        probed = self._learners.ask(lambda worker, _: worker.probe.remote(self._probe))
        bucket_refs = [asked[0].ref for asked in sent]
        by_teacher = self._teacher.ask(lambda worker, _: worker.receive.remote(version, bucket_refs))
        by_rollouts = asyncio.ensure_future(
            self._by_rollouts(
                lambda worker: worker.receive.remote(version, bucket_refs, self._probe), f"ack of {what}", lost=False
            )
        )
        try:
            learned, taught = await first_to_blame(
                self._learners.answers([one for asked in [*sent, probed] for one in asked], within_s=call_s, what=what),
                self._teacher.answers(by_teacher, within_s=call_s, what=f"ack of {what}"),
            )
            received = await by_rollouts
        finally:
            by_rollouts.cancel()
        for rank, error in received.items():
            if isinstance(error, LostWorkerError):
                self._fleet.lost(rank, error)
        acks = acks_of(received)
        ranks = len(self._learners)
        before, self.bucket_refs = self.bucket_refs, learned[:-ranks:ranks]
        self.acks = [*acks.values(), *taught]
        if digests_of(self.bucket_refs) == digests_of(before):  # a step below rounding: nobody has anything new to take
            self._said.clear()
        self._compare(version, learned[-ranks], acks)
        self._last = LastPublish(version, version, bucket_refs, learned[-ranks])

    async def _by_rollouts(
        self, call: Callable[[Any], Any], what: str, lost: bool = True
    ) -> dict[int, Ack | LostWorkerError]:
        """Ask all who serve; those who are lost over it are replaced, the others' answers count."""
        ranks = self._fleet.group.ranks
        self._fleet.group.asked += len(ranks)
        answers = await asyncio.gather(
            *(self._fleet.ask(rank, call, what=what) for rank in ranks), return_exceptions=True
        )
        found = dict(zip(ranks, answers, strict=True))
        for rank, answer in found.items():
            if isinstance(answer, LostWorkerError):
                if lost:
                    self._fleet.lost(rank, answer)
            elif isinstance(answer, BaseException):
                raise answer
        return found  # type: ignore[return-value]

    def _compare(self, version: int, learner_T: LogpT, acks: dict[int, Ack]) -> None:
        said, self._said = self._said, {rank: said for rank, said in self._said.items() if rank not in acks}
        for rank, ack in acks.items():
            name, engine_T = f"rollout {rank}", ack.probe_logp_T
            assert engine_T is not None
            refuse_other_weights(name, version, learner_T, engine_T, self._config.weights.max_logp_diff)
            if rank in said:
                before_learner_T, before_engine_T = said[rank]
                refuse_kept_weights(name, version, (before_learner_T, learner_T), (before_engine_T, engine_T))
            self._said[rank] = (learner_T, engine_T)


async def nodes_of(group: ActorGroup, within_s: float) -> dict[str, str]:
    """The node of each actor, by its name ("rollout 0")."""
    nodes = await group.each(lambda worker, _: worker.node.remote(), within_s=within_s, what="its node")
    return {f"{group.role} {rank}": node for rank, node in zip(group.ranks, nodes, strict=True)}


def acks_of(answers: Mapping[int, Ack | LostWorkerError]) -> dict[int, Ack]:
    return {rank: answer for rank, answer in answers.items() if isinstance(answer, Ack)}


def digests_of(bucket_refs: Sequence[BucketRef]) -> list[str]:
    return [bucket_ref.label.digest for bucket_ref in bucket_refs]


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
