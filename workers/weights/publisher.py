"""The driver's `weights` role: publish weights from the learners to rollout workers and teacher, and check that they
arrived.

Senders are the learners (`LearnerWorker.gather`, by an outbox of `transports.py`, or through a process group, see
`membership.py`). A bad publish raises `WeightSyncError`, which ends the run. It is caught by:

* `receiver.py`: each receiver checks version, index and digest of every bucket before it loads it, and that all tensors
  of the model were sent. An engine also checks that every parameter was loaded (`workers/rollout/vllm_weights.py`).
* `canary.py`: with the new weights each engine computes log-probabilities of a fixed prompt; values that differ from
  the learner's, or have not changed, raise an error.
* `workers/rollout/worker.py`: the engine must drop its prefix cache, which holds keys and values of the old weights.
* `LearnerGroup._refuse_mismatch` (`workers/learner/group.py`): after each step, every token sampled with these weights
  has the learner's log-probability.

A receiver that does not acknowledge in time is lost, not bad: a rollout worker is replaced (`workers/rollout/pool.py`);
after the loss of a learner or teacher the run goes back to its last checkpoint. Through a process group, a lost
receiver also breaks the broadcast to the others, which is then repeated in a new group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from demopsd_dist.config import Config, Transport, logp_bounds
from demopsd_dist.util.errors import BrokenGroupError, LostStateError, LostWorkerError, WeightSyncError
from workers.actor_group import ActorGroup, PendingCall, gather_root_cause
from workers.actor_handle import Handle, R, Ref
from workers.learner.worker import LearnerWorker
from workers.rollout.dispatch import Pool, RolloutWorkers
from workers.rollout.worker import RolloutWorker
from workers.teacher.worker import TeacherWorker
from workers.weights.buckets import Ack, BucketRef, Segment
from workers.weights.canary import CanaryHistory, LogpT, canary_tokens
from workers.weights.collective import SupersededError
from workers.weights.membership import WeightGroup, receiver_nodes
from workers.weights.process_group import SENDER
from workers.weights.receiver import Receiver
from workers.weights.transports import PublishPlan, choose_transport

RolloutCall = Callable[[Handle[RolloutWorker]], Ref[R]]
GatherCall = Callable[[Handle[LearnerWorker], int], Ref[BucketRef | None]]  # of the bucket of an index
SLOWEST_BYTES_PER_S = 10e6  # at which a worker that joins receives weights, by the slowest network


@dataclass(frozen=True)
class LastPublish:
    """The last publish, whose buckets can still be fetched, or gathered again where they were broadcast. `version` is
    above `sent_version` after steps without an optimizer update."""

    version: int
    sent_version: int
    bucket_refs: Sequence[Ref[BucketRef]]
    canary_T: LogpT  # the learner's log-probabilities of the canary


class WeightPublisher:
    """Publishes to all receivers at once; each loads a bucket while the learners gather the next.

    A publish makes one call to each learner for each bucket and one for the canary, and one to each receiver: their
    number does not grow with the number of tensors. The last publish stays available until the next one, for workers
    that join in between.

    Attributes:
        say: prints a line for the user.
    """

    plan: PublishPlan
    transport: Transport
    segment: Segment | None  # memory that the receivers map; None with other transports

    def __init__(
        self, learners: ActorGroup[LearnerWorker], rollouts: Pool, teacher: ActorGroup[TeacherWorker], config: Config
    ) -> None:
        self._learners, self._rollouts, self._teacher, self._config = learners, rollouts, teacher, config
        self._canaries = CanaryHistory(logp_bounds(config))
        self._last: LastPublish | None = None
        self._lock = asyncio.Lock()
        self._transport_setting = config.weights.transport
        self._published = asyncio.Event()
        self._starts = 0
        self.say: Callable[[str], None] = print
        self.bucket_refs: list[BucketRef] = []  # of the last publish, as are its acks
        self.acks: list[Ack] = []
        rollouts.sync_new_worker = self.sync_new_worker

    async def start(self) -> None:
        """Get the bucket plan from the learners, choose the transport, and attach the receivers; again after the
        learners were replaced. Rollout workers that have been lost are left out: the pool replaces them, and their
        replacements are attached when they join.

        Raises:
            ConfigError: `weights.transport` cannot reach all receivers.
        """
        async with self._lock:  # a worker that joins meanwhile waits
            await self._start()

    async def _start(self) -> None:
        within_s = self._config.limits.start_s
        self._canaries.forget()
        self._last = None
        plans = await self._learners.each(
            lambda worker, _: worker(LearnerWorker.plan), within_s=within_s, what="the list of weight buckets"
        )
        self.plan = plans[0]
        receivers: tuple[ActorGroup[Receiver], ...] = (self._rollouts.group, self._teacher)
        answers = _successes(await self._call_rollouts(lambda worker: worker(Receiver.node), "its node"))
        nodes = {f"{self._rollouts.group.role} {rank}": node for rank, node in answers.items()}
        nodes |= await receiver_nodes(self._teacher, within_s)
        self.transport = choose_transport(self._transport_setting, self.plan.node, nodes)
        self._group = WeightGroup(self._learners, self._config)
        if self.transport is Transport.collective:
            self._group.publishes_on_gpus(receivers)
        self.segment, *_ = await self._learners.each(
            lambda worker, _: worker(LearnerWorker.open_outbox, self.transport),
            within_s=within_s,
            what="opening memory for weights",
        )
        plan, segment = self.plan, self.segment
        await self._call_rollouts(lambda worker: worker(Receiver.attach, plan, segment), "mapping memory for weights")
        await self._attach(self._teacher)
        self._starts += 1
        self._canary = canary_tokens(self.plan.vocabulary_size, self._config.rollout.max_prompt_tokens)

    async def _attach(self, group: ActorGroup[Receiver]) -> None:
        plan, segment = self.plan, self.segment
        await group.each(
            lambda worker, _: worker(Receiver.attach, plan, segment),
            within_s=self._config.limits.start_s,
            what="mapping memory for weights",
        )

    async def sync_new_worker(self, new_worker: RolloutWorkers, serve: Callable[[], None]) -> None:
        """Send the last published weights to a joining rollout worker, then call `serve`, which lets it sample.

        Raises:
            WeightSyncError: a bucket arrived damaged or incomplete, or the engine does not use the weights.
            ConfigError: it is on another node or GPU, which `weights.transport` does not reach.
        """
        async with self._lock:
            if not self._starts:  # `start` will attach it
                return serve()
        while True:
            starts = self._starts
            try:
                return await self._sync_new_worker(new_worker, serve)
            except LostStateError:  # the learners died; they are restarted, or the run ends
                while self._starts == starts:
                    await asyncio.sleep(0.1)

    async def _sync_new_worker(self, new_worker: RolloutWorkers, serve: Callable[[], None]) -> None:
        nodes = await receiver_nodes(new_worker, self._config.limits.start_s)
        transport = choose_transport(self._transport_setting, self.plan.node, nodes)
        if transport is not self.transport is Transport.shared_memory:
            self._transport_setting = Transport.object_store
            self._published.clear()
            await self._published.wait()  # the next publish goes through the object store
        while True:
            async with self._lock:
                await self._attach(new_worker)
                try:
                    if self._last is not None:
                        await self._catch_up(new_worker, self._last)
                    return serve()
                except BrokenGroupError as error:
                    self._group.dissolve()
                    if not isinstance(error, SupersededError):
                        raise LostWorkerError(f"rollout {new_worker.ranks} did not get the weights: {error}") from None
                    self._published.clear()
            await self._published.wait()  # the learners have stepped, and publish soon

    async def _catch_up(self, new_worker: RolloutWorkers, last: LastPublish) -> None:
        """Send the last publish to a worker that joins."""
        limits, what = self._config.limits, f"weights version {last.sent_version}"
        within_s = min(limits.call_s, 2 * limits.silence_s + sum(self.plan.sizes) / SLOWEST_BYTES_PER_S)  # or it hangs
        if self.transport is Transport.collective:
            await self._group.form([new_worker])
        gathering, bucket_refs = self._start_again(last, last.version)
        gathered, acks = await gather_root_cause(
            self._learners.collect(gathering, within_s=limits.call_s, what=what),
            new_worker.each(
                lambda worker, _: worker(RolloutWorker.receive, last.sent_version, bucket_refs, self._canary),
                within_s=within_s,
                what=f"ack of {what}",
            ),
        )
        self._refuse_other_buckets(last, gathered)
        self._canaries.check(last.sent_version, last.canary_T, dict(zip(new_worker.ranks, acks, strict=True)))
        if last.version != last.sent_version:
            await new_worker.each(
                lambda worker, _: worker(RolloutWorker.mark_version, last.version),
                within_s=limits.call_s,
                what=f"setting weights version {last.version}",
            )

    def _start_again(self, last: LastPublish, version: int) -> tuple[list[PendingCall[Any]], Sequence[Ref[BucketRef]]]:
        """Make the buckets of the last publish available once more.

        Args:
            version: of the learners' weights, if they have not changed since.

        Returns:
            Calls of the learners, with those of the buckets first, and references to the buckets.
        """
        if self.transport is not Transport.collective:
            return [], last.bucket_refs
        gathering, bucket_refs = self._start_gathering(
            lambda worker, index: worker(LearnerWorker.gather_again, version, last.sent_version, index)
        )
        return [*gathering, *self._finish_sending()], bucket_refs

    def _start_gathering(self, gather: GatherCall) -> tuple[list[PendingCall[Any]], list[Ref[Any]]]:
        """Start to gather each bucket on all learners. Only rank 0 sends: the references are to the results of its
        calls, which the receivers fetch."""

        def gather_bucket(index: int) -> list[PendingCall[BucketRef | None]]:
            return self._learners.start(lambda worker, _: gather(worker, index))

        by_bucket = [gather_bucket(index) for index in range(len(self.plan.buckets))]
        return [call for calls in by_bucket for call in calls], [calls[SENDER].ref for calls in by_bucket]

    def _finish_sending(self) -> list[PendingCall[None]]:
        """Start to wait until a broadcast has ended, on the learner that sends; nothing with another transport."""
        if self.transport is not Transport.collective:
            return []
        return [self._learners.start_one(SENDER, lambda worker: worker(LearnerWorker.finish_sending))]

    def _refuse_other_buckets(self, last: LastPublish, gathered: Sequence[Any]) -> None:
        """Check that buckets that were gathered again are those of the last publish.

        Raises:
            WeightSyncError: they are not.
        """
        again = [item.header.digest for item in gathered if isinstance(item, BucketRef)]
        if again and again != _digests(self.bucket_refs):
            raise WeightSyncError(
                f"the learners' weights have changed since they were published as version {last.sent_version}, without "
                "a step. No worker can be given that version any more."
            )

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
            if not changed and (last := self._last) is not None:
                if self._rollouts.memory.held_by_learners:
                    await self._reach([self._rollouts.group], lambda: self._resend(last, version))
                self._last = replace(last, version=version)
                what = f"setting weights version {version}"
                await self._call_rollouts(lambda worker: worker(RolloutWorker.mark_version, version), what)
                # its average would otherwise move again at the next start from a checkpoint of this step
                await self._teacher.each(
                    lambda worker, _: worker(TeacherWorker.mark_version, version),
                    within_s=self._config.limits.call_s,
                    what=what,
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

    async def _reach(self, receivers: Sequence[ActorGroup[Receiver]], send: Callable[[], Awaitable[None]]) -> None:
        """Send. Through a process group: first let the receivers come to rest and form it; whenever it breaks, repeat
        this with those that are left.

        Raises:
            WeightSyncError: the group broke more than `limits.restarts` times although no rollout worker was lost.
        """
        if self.transport is not Transport.collective:
            return await send()
        broken: list[str] = []  # messages of the groups that broke without the loss of a worker
        attempt: tuple[list[int], str] | None = None  # the last one, which broke: its workers, and why
        while True:
            await self._call_rollouts(lambda worker: worker(RolloutWorker.pause), "the end of its requests")
            await self._teacher.each(
                lambda worker, _: worker(Receiver.turn), within_s=self._config.limits.call_s, what="its turn"
            )
            serving = self._rollouts.group.ranks
            if attempt is not None and attempt[0] == serving:
                broken.append(attempt[1])
            if len(broken) > self._config.limits.restarts:
                raise WeightSyncError(
                    f"a publish broke off {len(broken)} times (limits.restarts={self._config.limits.restarts}) "
                    f"although no worker was lost: {broken[-1]} Set weights.transport=auto."
                )
            try:
                await self._group.form(receivers)
                return await send()
            except BrokenGroupError as error:
                self._group.dissolve()
                self.say(f"warning: {error} The publish is repeated to the receivers that are left.")
                attempt = serving, str(error)

    async def _resend(self, last: LastPublish, version: int) -> None:
        """Send the last publish again to engines, which lost it while they slept. The teacher still has it."""
        what = f"weights version {last.sent_version}"
        gathering, bucket_refs = self._start_again(last, version)
        gathered, answers = await gather_root_cause(
            self._learners.collect(gathering, within_s=self._config.limits.call_s, what=what),
            self._call_rollouts(
                lambda worker: worker(RolloutWorker.receive, last.sent_version, bucket_refs, self._canary),
                f"ack of {what}",
            ),
        )
        acks = _successes(answers)
        self._refuse_other_buckets(last, gathered)
        self._canaries.forget()
        self._canaries.check(last.sent_version, last.canary_T, acks)

    async def _publish(self, version: int) -> None:
        if self._transport_setting is Transport.object_store is not self.transport:
            await self._start()
        self._last = None  # the new publish overwrites its buckets
        await self._reach([self._rollouts.group, self._teacher], lambda: self._send(version))

    async def _send(self, version: int) -> None:
        call_s, what = self._config.limits.call_s, f"weights version {version}"
        gathering, bucket_refs = self._start_gathering(
            lambda worker, index: worker(LearnerWorker.gather, version, index)
        )
        canary = self._learners.start(lambda worker, _: worker(LearnerWorker.canary_logp, self._canary))
        teacher_acks = self._teacher.start(lambda worker, _: worker(TeacherWorker.receive, version, bucket_refs))
        learner_calls: list[PendingCall[Any]] = [*gathering, *canary, *self._finish_sending()]
        by_learners, by_teacher, answers = await gather_root_cause(
            self._learners.collect(learner_calls, within_s=call_s, what=what),
            self._teacher.collect(teacher_acks, within_s=call_s, what=f"ack of {what}"),
            self._call_rollouts(
                lambda worker: worker(RolloutWorker.receive, version, bucket_refs, self._canary),
                f"ack of {what}",
                report_lost=False,
            ),
        )
        for rank, answer in answers.items():
            if isinstance(answer, LostWorkerError):
                self._rollouts.report_lost_worker(rank, answer)
        acks = _successes(answers)
        canary_T: LogpT = by_learners[len(gathering)]
        previous, self.bucket_refs = self.bucket_refs, by_learners[: len(gathering) : len(self._learners)]
        self.acks = [*acks.values(), *by_teacher]
        # identical bytes: the update was below rounding, so unchanged log-probabilities are no error
        if _digests(self.bucket_refs) == _digests(previous):
            self._canaries.forget()
        self._canaries.check(version, canary_T, acks)
        self._last = LastPublish(version, version, bucket_refs, canary_T)

    async def _call_rollouts(
        self, call: RolloutCall[R], what: str, *, report_lost: bool = True
    ) -> dict[int, R | LostWorkerError | BrokenGroupError]:
        """Call all serving rollout workers; result by rank, or the error of a worker that died or did not answer in
        time, or whose process group broke. With `report_lost` the pool replaces lost workers."""
        ranks = self._rollouts.group.ranks
        self._rollouts.group.call_count += len(ranks)
        calls = [self._rollouts.call(rank, call, what=what) for rank in ranks]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        by_rank: dict[int, R | LostWorkerError | BrokenGroupError] = {}
        for rank, answer in zip(ranks, answers, strict=True):
            if isinstance(answer, LostWorkerError):
                if report_lost:
                    self._rollouts.report_lost_worker(rank, answer)
            elif isinstance(answer, BaseException) and not isinstance(answer, BrokenGroupError):
                raise answer
            by_rank[rank] = answer
        return by_rank


def _successes(answers: dict[int, R | LostWorkerError | BrokenGroupError]) -> dict[int, R]:
    """Answers of the workers that are not lost.

    Raises:
        BrokenGroupError: the process group broke.
    """
    for answer in answers.values():
        if isinstance(answer, BrokenGroupError):
            raise answer
    return {
        rank: answer for rank, answer in answers.items() if not isinstance(answer, LostWorkerError | BrokenGroupError)
    }


def _digests(refs: Sequence[BucketRef]) -> list[str]:
    return [ref.header.digest for ref in refs]
