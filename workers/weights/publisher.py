"""The driver's `weights` role: publish weights from the learners to rollout workers and teacher, and check that they
arrived.

Senders are the learners (`LearnerWorker.gather`, by an outbox of `transports.py`). A bad publish raises
`WeightSyncError`, which ends the run. It is caught by:

* `receiver.py`: each receiver checks version, index and digest of every bucket before it loads it, and that all tensors
  of the model were sent. An engine also checks that every parameter was loaded (`workers/rollout/vllm_weights.py`).
* `WeightPublisher._check_canary`, below: with the new weights each engine computes log-probabilities of a fixed prompt;
  values that differ from the learner's, or have not changed, raise an error (`canary.py`).
* `workers/rollout/worker.py`: the engine must drop its prefix cache, which holds keys and values of the old weights.
* `LearnerGroup._refuse_mismatch` (`workers/learner/group.py`): after each step, every token sampled with these weights
  has the learner's log-probability.

A receiver that does not acknowledge in time is lost, not bad: a rollout worker is replaced (`workers/rollout/pool.py`);
after the loss of a learner or teacher the run goes back to its last checkpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from demopsd_dist.config import Config, Transport, logp_bounds
from demopsd_dist.util.errors import LostStateError, LostWorkerError
from workers.actor_group import OTHER_FAILURES_S, ActorGroup, PendingCall
from workers.actor_handle import Handle, R, Ref
from workers.learner.worker import LearnerWorker
from workers.rollout.dispatch import Pool, RolloutWorkers
from workers.rollout.worker import RolloutWorker
from workers.teacher.worker import TeacherWorker
from workers.weights.buckets import Ack, BucketRef, SharedSegment
from workers.weights.canary import LogpT, canary_tokens, refuse_old_weights, refuse_other_weights
from workers.weights.receiver import Receiver
from workers.weights.transports import PublishPlan, choose_transport

RolloutCall = Callable[[Handle[RolloutWorker]], Ref[R]]


@dataclass(frozen=True)
class LastPublish:
    """The last publish, whose buckets can still be fetched. `version` is above `sent_version` after steps without an
    optimizer update."""

    version: int
    sent_version: int
    bucket_refs: Sequence[Ref[BucketRef]]
    canary_T: LogpT  # the learner's log-probabilities of the canary


class WeightPublisher:
    """Publishes to all receivers at once; each loads a bucket while the learners gather the next.

    A publish makes one call to each learner for each bucket and one for the canary, and one to each receiver: their
    number does not grow with the number of tensors. The last publish stays available until the next one, for workers
    that join in between.
    """

    plan: PublishPlan
    transport: Transport
    segment: SharedSegment | None  # None if the transport is not shared memory

    def __init__(
        self, learners: ActorGroup[LearnerWorker], rollouts: Pool, teacher: ActorGroup[TeacherWorker], config: Config
    ) -> None:
        self._learners, self._rollouts, self._teacher, self._config = learners, rollouts, teacher, config
        self._canary_logp: dict[int, tuple[LogpT, LogpT]] = {}  # learner's and engine's, by the engine's rank
        self._last: LastPublish | None = None
        self._lock = asyncio.Lock()
        self._transport_setting = config.weights.transport
        self._published = asyncio.Event()
        self.bucket_refs: list[BucketRef] = []  # of the last publish, as are its acks
        self.acks: list[Ack] = []
        rollouts.sync_new_worker = self.sync_new_worker

    async def start(self) -> None:
        """Get the bucket plan from the learners, choose the transport, and attach the receivers.

        Raises:
            ConfigError: `weights.transport` cannot reach all receivers.
        """
        within_s = self._config.limits.start_s
        self._canary_logp, self._last = {}, None
        plans = await self._learners.each(
            lambda worker, _: worker(LearnerWorker.plan), within_s=within_s, what="the list of weight buckets"
        )
        self.plan = plans[0]
        receivers: tuple[ActorGroup[Receiver], ...] = (self._rollouts.group, self._teacher)
        nodes: dict[str, str] = {}
        for group in receivers:
            nodes |= await receiver_nodes(group, within_s)
        self.transport = choose_transport(self._transport_setting, self.plan.node, nodes)
        self.segment, *_ = await self._learners.each(
            lambda worker, _: worker(LearnerWorker.open_outbox, self.transport),
            within_s=within_s,
            what="opening memory for weights",
        )
        for group in receivers:
            await self._attach(group)
        self._canary = canary_tokens(self.plan.vocabulary_size, self._config.rollout.max_prompt_tokens)

    async def restart(self) -> None:
        """Start again after the learners were replaced."""
        async with self._lock:
            await self.start()

    async def _attach(self, group: ActorGroup[Receiver]) -> None:
        plan, segment = self.plan, self.segment
        await group.each(
            lambda worker, _: worker(Receiver.attach, plan, segment),
            within_s=self._config.limits.start_s,
            what="mapping shared memory",
        )

    async def sync_new_worker(self, new_worker: RolloutWorkers, serve: Callable[[], None]) -> None:
        """Send the last published weights to a joining rollout worker, then call `serve`, which lets it sample.

        Raises:
            WeightSyncError: a bucket arrived damaged or incomplete, or the engine does not use the weights.
            ConfigError: it is on another node, where `weights.transport=shared_memory` does not reach.
        """
        if not hasattr(self, "plan"):  # before `start`
            return serve()
        while True:
            segment = self.segment
            try:
                return await self._sync_new_worker(new_worker, serve)
            except LostStateError:  # the learners died; they are restarted, or the run ends
                while self.segment == segment:
                    await asyncio.sleep(0.1)

    async def _sync_new_worker(self, new_worker: RolloutWorkers, serve: Callable[[], None]) -> None:
        nodes = await receiver_nodes(new_worker, self._config.limits.start_s)
        transport = choose_transport(self._transport_setting, self.plan.node, nodes)
        if transport is not self.transport is Transport.shared_memory:
            self._transport_setting = Transport.object_store
            self._published.clear()
            await self._published.wait()  # the next publish goes through the object store
        async with self._lock:
            await self._attach(new_worker)
            if self._last is not None:
                last, call_s = self._last, self._config.limits.call_s
                acks = await new_worker.each(
                    lambda worker, _: worker(RolloutWorker.receive, last.sent_version, last.bucket_refs, self._canary),
                    within_s=call_s,
                    what=f"ack of weights version {last.sent_version}",
                )
                self._check_canary(last.sent_version, last.canary_T, dict(zip(new_worker.ranks, acks, strict=True)))
                if last.version != last.sent_version:
                    await new_worker.each(
                        lambda worker, _: worker(RolloutWorker.mark_version, last.version),
                        within_s=call_s,
                        what=f"setting weights version {last.version}",
                    )
            return serve()

    async def publish(self, version: int, *, changed: bool = True) -> None:
        """Publish the learners' weights as `version`.

        Args:
            changed: False if the step made no optimizer update; then only the version is new, and weights go only to
                engines that slept.

        Raises:
            WeightSyncError: a bucket arrived damaged or incomplete, or an engine does not use the weights.
            LostStateError: a learner or the teacher is gone.
        """
        async with self._lock:
            if not changed and self._last is not None:
                if self._rollouts.memory.held_by_learners:
                    await self._resend(self._last)
                self._last = replace(self._last, version=version)
                await self._call_rollouts(
                    lambda worker: worker(RolloutWorker.mark_version, version), f"setting weights version {version}"
                )
            else:
                await self._publish(version)
        self._rollouts.memory.release()
        self._published.set()

    async def sleep_engines(self) -> None:
        """Let engines that share a GPU with the learners sleep until the next publish (`rollout.sleep`); a new
        worker's engine starts only after that."""
        if not self._config.rollout.sleep:
            return
        await self._rollouts.memory.acquire(self._config.limits.start_s)
        async with self._lock:
            await self._call_rollouts(lambda worker: worker(RolloutWorker.sleep), "sleep")

    async def _resend(self, last: LastPublish) -> None:
        """Send the last publish again to engines, which lost it while they slept. The teacher still has it."""
        answers = await self._call_rollouts(
            lambda worker: worker(RolloutWorker.receive, last.sent_version, last.bucket_refs, self._canary),
            f"ack of weights version {last.sent_version}",
        )
        self._canary_logp.clear()
        self._check_canary(last.sent_version, last.canary_T, _without_lost_workers(answers))

    async def _publish(self, version: int) -> None:
        call_s, what = self._config.limits.call_s, f"weights version {version}"
        if self._transport_setting is Transport.object_store is not self.transport:
            await self.start()
        self._last = None  # the new publish overwrites its buckets
        gathering = [self._start_gather(version, index) for index in range(len(self.plan.buckets))]
        canary = self._learners.start(lambda worker, _: worker(LearnerWorker.canary_logp, self._canary))
        # Only rank 0 sends; these refer to the results of its calls, which the receivers fetch.
        bucket_refs: list[Ref[Any]] = [calls[0].ref for calls in gathering]
        teacher_acks = self._teacher.start(lambda worker, _: worker(TeacherWorker.receive, version, bucket_refs))
        rollout_acks = asyncio.ensure_future(
            self._call_rollouts(
                lambda worker: worker(RolloutWorker.receive, version, bucket_refs, self._canary),
                f"ack of {what}",
                report_lost=False,
            )
        )
        learner_calls: list[PendingCall[Any]] = [*(call for calls in gathering for call in calls), *canary]
        try:
            by_learners, by_teacher = await gather_root_cause(
                self._learners.collect(learner_calls, within_s=call_s, what=what),
                self._teacher.collect(teacher_acks, within_s=call_s, what=f"ack of {what}"),
            )
            answers = await rollout_acks
        finally:
            rollout_acks.cancel()
        for rank, answer in answers.items():
            if isinstance(answer, LostWorkerError):
                self._rollouts.report_lost_worker(rank, answer)
        acks = _without_lost_workers(answers)
        ranks = len(self._learners)
        canary_T: LogpT = by_learners[-ranks]
        previous, self.bucket_refs = self.bucket_refs, by_learners[:-ranks:ranks]
        self.acks = [*acks.values(), *by_teacher]
        # identical bytes: the update was below rounding, so unchanged log-probabilities are no error
        if _digests(self.bucket_refs) == _digests(previous):
            self._canary_logp.clear()
        self._check_canary(version, canary_T, acks)
        self._last = LastPublish(version, version, bucket_refs, canary_T)

    def _start_gather(self, version: int, index: int) -> list[PendingCall[BucketRef | None]]:
        """Start gathering a bucket on all learners."""
        return self._learners.start(lambda worker, _: worker(LearnerWorker.gather, version, index))

    async def _call_rollouts(
        self, call: RolloutCall[R], what: str, *, report_lost: bool = True
    ) -> dict[int, R | LostWorkerError]:
        """Call all serving rollout workers; result by rank, or the error of a worker that died or did not answer in
        time. With `report_lost` the pool replaces lost workers."""
        ranks = self._rollouts.group.ranks
        self._rollouts.group.call_count += len(ranks)
        calls = [self._rollouts.call(rank, call, what=what) for rank in ranks]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        by_rank: dict[int, R | LostWorkerError] = {}
        for rank, answer in zip(ranks, answers, strict=True):
            if isinstance(answer, LostWorkerError):
                if report_lost:
                    self._rollouts.report_lost_worker(rank, answer)
            elif isinstance(answer, BaseException):
                raise answer
            by_rank[rank] = answer
        return by_rank

    def _check_canary(self, version: int, learner_T: LogpT, acks: dict[int, Ack]) -> None:
        """Check that the engines that acknowledged use the new weights.

        Raises:
            WeightSyncError: an engine's log-probabilities of the canary are not the learner's, or the old ones.
        """
        previous = self._canary_logp
        self._canary_logp = {rank: logp for rank, logp in previous.items() if rank not in acks}
        for rank, ack in acks.items():
            name, engine_T = f"rollout {rank}", ack.canary_logp_T
            assert engine_T is not None
            refuse_other_weights(name, version, learner_T, engine_T, logp_bounds(self._config))
            if rank in previous:
                previous_learner_T, previous_engine_T = previous[rank]
                refuse_old_weights(name, version, (previous_learner_T, learner_T), (previous_engine_T, engine_T))
            self._canary_logp[rank] = (learner_T, engine_T)


async def receiver_nodes(group: ActorGroup[Receiver], within_s: float) -> dict[str, str]:
    """Node of each actor, by the actor's name ("rollout 0")."""
    nodes = await group.each(lambda worker, _: worker(Receiver.node), within_s=within_s, what="its node")
    return {f"{group.role} {rank}": node for rank, node in zip(group.ranks, nodes, strict=True)}


def _without_lost_workers(answers: dict[int, R | LostWorkerError]) -> dict[int, R]:
    return {rank: answer for rank, answer in answers.items() if not isinstance(answer, LostWorkerError)}


def _digests(bucket_refs: Sequence[BucketRef]) -> list[str]:
    return [bucket_ref.header.digest for bucket_ref in bucket_refs]


async def gather_root_cause(*waits: Awaitable[Any]) -> list[Any]:
    """Wait for all results. Of several failures at about the same time, raise the one that comes first in the
    arguments: a receiver that waits for a learner fails when that learner dies, and the learner's error is the
    cause."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        _, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if waiting:
            await asyncio.wait(waiting, timeout=OTHER_FAILURES_S + 1)
        errors = [error for task in tasks if task.done() and (error := task.exception())]
        if errors:
            raise errors[0]
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
