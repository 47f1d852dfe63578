"""The driver's roles, played by groups of Ray actors."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np

from demopsd_dist.config import Config
from demopsd_dist.data.packing import RowLayout, assign_rows, layout_by_question, shard_rows
from demopsd_dist.data.records import ScoredExample, StepReport, Tokens, TrainBatch, TrainingExample
from demopsd_dist.methods import Forwards, SupportKind, resolve_method
from demopsd_dist.objective import statistic
from demopsd_dist.run_record.digests import merged
from demopsd_dist.run_record.timeline import Track
from demopsd_dist.training.roles import Roles
from demopsd_dist.util.errors import WeightSyncError
from workers.actor_group import ActorGroup, ResourceClaim
from workers.cluster.placement import core_bundles
from workers.cluster.spans import tracks_of
from workers.learner import worker as learner
from workers.rollout.dispatch import Pool, RolloutGroup
from workers.rollout.pool import FixedPool, RolloutPool, Say
from workers.teacher import worker as teacher
from workers.weights.publisher import WeightPublisher, first_to_blame

QUANTILES = (50, 90, 95, 99)


class TeacherGroup:
    """Replicas that share the examples; none where the method asks for no forward of them."""

    def __init__(self, group: ActorGroup, config: Config) -> None:
        self._group, self._config = group, config
        self._sent_bytes = self._tokens = 0
        self._busy_s = 0.0

    async def score(
        self, examples: Sequence[TrainingExample], supports_TK: Sequence[Tokens] | None, forwards: Forwards
    ) -> list[ScoredExample]:
        if not examples:
            return []
        if not forwards.weights:
            assert supports_TK is not None
            return [ScoredExample(*row, None, None) for row in zip(examples, supports_TK, strict=True)]
        hands = self._hands(examples)
        started = time.monotonic()
        answers = await self._group.each(
            lambda worker, rank: worker.score.remote(
                [examples[i] for i in hands[rank]],
                None if supports_TK is None else [supports_TK[i] for i in hands[rank]],
                forwards,
            ),
            within_s=self._config.limits.call_s,
            what=f"scores of {len(examples)} responses",
        )
        found: dict[int, ScoredExample] = {}
        for hand, values in zip(hands, answers, strict=True):
            for i, (ids_TK, reference_TA, teacher_TA) in zip(hand, values, strict=True):
                support_TK = ids_TK if supports_TK is None else supports_TK[i]
                found[i] = ScoredExample(examples[i], support_TK, reference_TA, teacher_TA)
        self._busy_s += time.monotonic() - started
        self._tokens += sum(example.response_length_tokens for example in examples)
        self._sent_bytes += sum(
            part.nbytes for hand in answers for values in hand for part in values if part is not None
        )
        return [found[i] for i in range(len(examples))]

    def figures(self) -> dict[str, float]:
        """Of the response tokens scored since the last call, whatever the number of forwards each took."""
        tokens, sent_bytes, busy_s = self._tokens, self._sent_bytes, self._busy_s
        self._tokens, self._sent_bytes, self._busy_s = 0, 0, 0.0
        if not tokens:
            return {}
        return {"teacher/tokens_per_s": tokens / busy_s, "teacher/bytes_per_token": sent_bytes / tokens}

    async def save(self, folder: Path) -> None:
        folder.mkdir()
        await self._group.each(
            lambda worker, _: worker.save.remote(folder.resolve()),
            within_s=self._config.limits.call_s,
            what=f"saving {folder}",
        )

    async def load(self, folder: Path) -> None:
        await self._group.each(
            lambda worker, _: worker.load.remote(folder.resolve()),
            within_s=self._config.limits.call_s,
            what=f"weights of {folder}",
        )

    def _hands(self, examples: Sequence[TrainingExample]) -> list[list[int]]:
        """Indices for each replica: about as many tokens each, siblings together as far as that allows."""
        ranks = assign_rows(
            range(len(examples)),
            layout_by_question(lambda i: examples[i], self._config.model.tree_tokens),
            len(self._group),
        )
        return [[i for row in rank for i in row.items] for rank in ranks]


async def nothing() -> None:
    pass


class LearnerGroup:
    """
    Args:
        make_room: asked before each step, which others may have to give memory back for.
    """

    def __init__(self, group: ActorGroup, config: Config, make_room: Callable[[], Awaitable[None]] = nothing) -> None:
        self._group, self._config, self._make_room = group, config, make_room
        self._call_s = config.limits.call_s
        self.dp_size = len(group)

    async def support(self, examples: Sequence[TrainingExample]) -> list[Tokens] | None:
        match resolve_method(self._config).forwards.support:
            case SupportKind.sampled:
                return [example.response_T[:, None] for example in examples]
            case SupportKind.vocabulary:
                return [np.zeros((example.response_length_tokens, 0), np.int32) for example in examples]
            case SupportKind.engine:
                return [ids for example in examples if (ids := example.rollout.support_TK) is not None]
            case SupportKind.reference:
                return None
            case SupportKind.student:
                return await self._student_support(examples)

    async def _student_support(self, examples: Sequence[TrainingExample]) -> list[Tokens]:
        layout: RowLayout[int] = layout_by_question(lambda i: examples[i], self._config.model.tree_tokens)
        places = shard_rows(
            range(len(examples)),
            layout,
            dp_size=self.dp_size,
            micro_batch_tokens=self._config.learner.micro_batch_tokens,
        )
        answers = await self._group.each(
            lambda worker, rank: worker.support.remote(
                [[[examples[i] for i in row.items] for row in batch] for batch in places[rank]]
            ),
            within_s=self._call_s,
            what=f"support ids of {len(examples)} responses",
        )
        found: dict[int, Tokens] = {}
        for rank, answer in enumerate(answers):
            for batch, ids in zip(places[rank], answer, strict=True):
                found |= zip([i for row in batch for i in row.items], ids, strict=True)
        return [found[i] for i in range(len(examples))]

    async def step(self, batch: TrainBatch) -> StepReport:
        if batch.token_count:
            await self._make_room()
        reports = await self._group.each(
            lambda worker, rank: worker.step.remote(
                batch.shards[rank],
                batch.token_count,
                batch.size,
                batch.learning_rate_factor,
                batch.record_ids,
                batch.trace,
            ),
            within_s=self._call_s,
            what=f"a step on {batch.token_count} response tokens",
        )
        metrics: dict[str, float] = {}
        for report in reports:
            for name, value in report.sums.items():
                metrics[name] = metrics.get(name, 0.0) + value
            for name, value in report.maxima.items():
                metrics[name] = float(np.maximum(metrics.get(name, 0.0), value))  # keeps a NaN
        for name in reports[0].distributions:
            values = np.concatenate([report.distributions[name] for report in reports])
            for percent in QUANTILES:
                metrics[statistic(name, f"p{percent}")] = float(np.percentile(values, percent))
        if leaked := metrics.get("leakage/teacher_nats"):
            metrics["leakage/ratio"] = metrics["leakage/target_nats"] / leaked
        self._refuse_mismatch(metrics.get("mismatch/logp_diff_max", 0.0))
        tables = {name: table for report in reports for name, table in report.tables.items()}
        return StepReport(metrics, reports[0].stepped, tables, merged(report.digests for report in reports))

    def _refuse_mismatch(self, worst: float) -> None:
        allowed = self._config.weights.max_logp_diff
        if not worst <= allowed:
            raise WeightSyncError(
                f"a rollout engine and the learner differ by {worst:.3g} nats in the log-probability of a sampled "
                f"token; weights.max_logp_diff={allowed:g}. The engine samples from other weights than those "
                "published. In bfloat16 differences up to 0.5 are rounding: raise weights.max_logp_diff there."
            )

    async def save(self, folder: Path) -> None:
        folder.mkdir()
        await self._group.each(
            lambda worker, _: worker.save.remote(folder.resolve()), within_s=self._call_s, what=f"saving {folder}"
        )

    async def load(self, folder: Path) -> None:
        await self._group.each(
            lambda worker, _: worker.load.remote(folder.resolve()), within_s=self._call_s, what=f"loading {folder}"
        )

    async def export(self, folder: Path) -> None:
        await self._group.each(
            lambda worker, _: worker.export.remote(folder.resolve()), within_s=self._call_s, what=f"export to {folder}"
        )


async def start_ranks(group: ActorGroup, within_s: float, what: str) -> None:
    """Let the ranks meet: rank 0 says where, then all start, and join its process group."""
    if not len(group):
        return
    addresses = await group.each(lambda worker, _: worker.address.remote(), within_s=within_s, what="an address")
    await group.each(lambda worker, _: worker.start.remote(addresses[0]), within_s=within_s, what=what)


async def forwards_run(groups: Sequence[ActorGroup], within_s: float) -> dict[str, int]:
    """Responses that went through each forward of these actors since their start, added up."""
    total: Counter[str] = Counter()
    for group in groups:
        for ran in await group.each(
            lambda worker, _: worker.forwards_run.remote(), within_s=within_s, what="the forwards that it has run"
        ):
            total += ran
    return dict(sorted(total.items()))


class RolloutActors:
    """Rollout workers alone, with the weights of the model folder: what an evaluation needs."""

    def __init__(self, config: Config, model_folder: Path, say: Say = print) -> None:
        self._config = config
        self._fleet = RolloutPool(config, model_folder.resolve(), blank=False, say=say)

    async def start(self) -> RolloutGroup:
        await self._fleet.start()
        return RolloutGroup(self._fleet, self._config)

    def stop(self) -> None:
        self._fleet.stop()


class LearnersAndTeacher:
    """Learners and teacher, placed together: those who learn a step whose rollouts are there. `start` returns when
    every engine is ready, `stop` kills them."""

    def __init__(self, config: Config, model_folder: Path, fleet: Pool | None = None) -> None:
        self._config, self._folder = config, model_folder.resolve()
        self._core = ResourceClaim(core_bundles(config))
        self._learners = ActorGroup("learner", {})
        self._teacher = ActorGroup("teacher", {})
        self._rollouts: Pool = fleet or FixedPool(ActorGroup("rollout", {}), config)
        self._publisher = WeightPublisher(self._learners, self._rollouts, self._teacher, config)

    async def start(self) -> Roles:
        await self._start_all()
        await self._publisher.start()
        return Roles(
            rollouts=RolloutGroup(self._rollouts, self._config),
            teacher=TeacherGroup(self._teacher, self._config),
            learners=LearnerGroup(self._learners, self._config, self._publisher.make_room),
            weights=self._publisher,
            restart=self.restart,
            tracks=self.tracks,
        )

    async def restart(self) -> None:
        """Learners and teacher made anew, where one of them was lost. Whoever has no state left is no use to the
        others, so all of them end first."""
        self._learners.kill()
        self._teacher.kill()
        await self._start_core()
        await self._publisher.renew()

    async def _start_all(self) -> None:
        await self._start_core()

    async def _start_core(self) -> None:
        within_s = self._config.limits.start_s
        await self._core.ready(within_s)
        for group, actor, env in (
            (self._teacher, teacher.TeacherWorker, teacher.environment(self._config)),
            (self._learners, learner.LearnerWorker, learner.environment(self._config)),
        ):
            group.put(self._core.spawn(group.role, actor, lambda rank: (rank, self._config, self._folder), env))
        await first_to_blame(
            start_ranks(self._learners, within_s, "the DeepSpeed process group"),
            start_ranks(self._teacher, within_s, "the teacher's models"),
        )

    @property
    def groups(self) -> dict[str, ActorGroup]:
        """The actors that live now, by role."""
        return {group.role: group for group in (self._rollouts.group, self._teacher, self._learners) if len(group)}

    async def tracks(self, start_s: float) -> list[Track]:
        """What each worker was busy with since then."""
        groups = (self._rollouts.group, self._teacher, self._learners)
        return await tracks_of(groups, start_s, self._config.limits.call_s)

    @property
    def transport(self) -> str:
        """How weights travel in this run."""
        return self._publisher.transport.value

    async def forwards_run(self) -> dict[str, int]:
        """Responses that went through each forward of teacher and learners since the start."""
        return await forwards_run((self._teacher, self._learners), self._config.limits.call_s)

    def stop(self) -> None:
        for group in (self._teacher, self._learners):
            group.kill()
        self._core.release()


class RayActors(LearnersAndTeacher):
    """All actors of a run: learners and teacher, and each rollout worker by itself."""

    def __init__(self, config: Config, model_folder: Path, say: Say = print) -> None:
        self.fleet = RolloutPool(config, model_folder.resolve(), blank=True, say=say)
        super().__init__(config, model_folder, self.fleet)

    async def _start_all(self) -> None:
        await first_to_blame(self._start_core(), self.fleet.start())

    def stop(self) -> None:
        self.fleet.stop()
        super().stop()
