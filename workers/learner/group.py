"""The driver's learner role: one shard of a batch to each rank, and one report of the step back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from demopsd_dist.config import Config, logp_bounds
from demopsd_dist.data.packing import Row, layout_by_question, shard_rows
from demopsd_dist.data.records import Logp, StepReport, Tokens, TrainBatch, TrainingExample
from demopsd_dist.methods import MethodSpec, SupportKind
from demopsd_dist.objective import statistic
from demopsd_dist.run_record.digests import merge_digests
from demopsd_dist.util.errors import WeightSyncError, WorkerError
from workers.actor_group import ActorGroup
from workers.forward import sampled_first
from workers.learner.observers.rank_report import RankReport
from workers.learner.worker import LearnerWorker

T = TypeVar("T")
QUANTILES = (50, 90, 95, 99)


async def no_preparation() -> None:
    """Do nothing before a step."""


class LearnerGroup:
    """Learner ranks, which step together.

    Args:
        before_step: awaited before each step, so that engines free memory that the step needs.
    """

    def __init__(
        self,
        group: ActorGroup[LearnerWorker],
        config: Config,
        method: MethodSpec,
        before_step: Callable[[], Awaitable[None]] = no_preparation,
    ) -> None:
        self._group, self._config, self._method, self._before_step = group, config, method, before_step
        self._call_s = config.limits.call_s
        self.dp_size = len(group)

    async def support(self, examples: Sequence[TrainingExample]) -> list[Tokens] | None:
        """Support ids (T, K) of each example, in order; None where the teacher chooses them.

        Raises:
            WorkerError: the method takes the engine's support, and a rollout has none.
        """
        supports = await self._support(examples)
        if supports is None or self._method.mix is None:
            return supports
        return [sampled_first(ids_TK, each.response_T) for ids_TK, each in zip(supports, examples, strict=True)]

    async def _support(self, examples: Sequence[TrainingExample]) -> list[Tokens] | None:
        match self._method.forwards.support:
            case SupportKind.sampled:
                return [example.rollout.tokens_T[:, None] for example in examples]
            case SupportKind.vocabulary:
                return [np.zeros((example.response_length_tokens, 0), np.int32) for example in examples]
            case SupportKind.engine:
                return [engine_support(example) for example in examples]
            case SupportKind.reference:
                return None
            case SupportKind.student:
                return await self._student_support(examples)

    async def logp(
        self, examples: Sequence[TrainingExample], supports_TK: Sequence[Tokens] | None, top_k: int
    ) -> list[tuple[Tokens, Logp]]:
        """Support ids (T, K) of each example, and the log-probabilities (T, K + 1) on them and the tail. Where no
        `supports_TK` are given, the ids are the student's own `top_k` most likely ones."""
        if supports_TK is None:
            supports_TK = await self._student_support(examples, top_k)
        given, assignment = list(supports_TK), self._assignment(examples)
        values_by_rank = await self._group.each(
            lambda worker, rank: worker(
                LearnerWorker.logp,
                [[[examples[i] for i in row.items] for row in batch] for batch in assignment[rank]],
                [[given[i] for row in batch for i in row.items] for batch in assignment[rank]],
            ),
            within_s=self._call_s,
            what=f"log-probabilities of {len(examples)} responses",
        )
        values = _by_example(assignment, values_by_rank)
        return [(given[i], values[i]) for i in range(len(examples))]

    def _assignment(self, examples: Sequence[TrainingExample]) -> list[list[list[Row[int]]]]:
        """Rows of the examples' indices by rank and micro-batch."""
        return shard_rows(
            range(len(examples)),
            layout_by_question(examples.__getitem__, self._config.model.tree_tokens),
            dp_size=self.dp_size,
            micro_batch_tokens=self._config.learner.micro_batch_tokens,
        )

    async def _student_support(self, examples: Sequence[TrainingExample], top_k: int | None = None) -> list[Tokens]:
        """The student's most likely ids, `top_k` of them or as many as the method takes."""
        assignment = self._assignment(examples)
        ids_by_rank = await self._group.each(
            lambda worker, rank: worker(
                LearnerWorker.support,
                [[[examples[i] for i in row.items] for row in batch] for batch in assignment[rank]],
                top_k,
            ),
            within_s=self._call_s,
            what=f"support ids of {len(examples)} responses",
        )
        supports = _by_example(assignment, ids_by_rank)
        return [supports[i] for i in range(len(examples))]

    async def step(self, batch: TrainBatch) -> StepReport:
        """Take one optimizer step on all ranks.

        Raises:
            NonFiniteLossError: on every rank, before the step.
            WeightSyncError: a rollout engine sampled from other weights than those published.
        """
        if batch.token_count:
            await self._before_step()
        reports = await self._group.each(
            lambda worker, rank: worker(
                LearnerWorker.step,
                batch.shards[rank],
                batch.token_count,
                batch.size,
                batch.learning_rate_factor,
                batch.record_ids,
                batch.digest_request,
            ),
            within_s=self._call_s,
            what=f"a step on {batch.token_count} response tokens",
        )
        metrics = step_metrics(reports)
        self._refuse_mismatch(metrics)
        token_records = {name: record for report in reports for name, record in report.token_records.items()}
        return StepReport(
            metrics, reports[0].stepped, token_records, merge_digests(report.digests for report in reports)
        )

    def _refuse_mismatch(self, metrics: Mapping[str, float]) -> None:
        """Compare the differences of sampled tokens with their bounds; a step without fresh ones has none."""
        bounds = logp_bounds(self._config)
        for name, setting, allowed, kind in (
            ("mismatch/logp_diff_max", "max_logp_diff", bounds.largest, ""),
            ("mismatch/logp_diff_p50", "typical_logp_diff", bounds.typical, " (median)"),
        ):
            if not (found := metrics.get(name, 0.0)) <= allowed:
                raise WeightSyncError(
                    f"a rollout engine and the learner differ by {found:.3g} nats{kind} in the log-probability of a "
                    f"sampled token; weights.{setting}={allowed:g}. The engine samples from other weights than those "
                    "published (docs/weights.md)."
                )

    async def save(self, folder: Path) -> None:
        """Write weights, optimizer and step into a new folder."""
        folder.mkdir()
        await self._group.each(
            lambda worker, _: worker(LearnerWorker.save, folder.resolve()),
            within_s=self._call_s,
            what=f"saving {folder}",
        )

    async def load(self, folder: Path) -> None:
        """Load a checkpoint that `save` wrote."""
        await self._group.each(
            lambda worker, _: worker(LearnerWorker.load, folder.resolve()),
            within_s=self._call_s,
            what=f"loading {folder}",
        )

    async def export(self, folder: Path) -> None:
        """Write the student as a Hugging Face model folder."""
        await self._group.each(
            lambda worker, _: worker(LearnerWorker.export, folder.resolve()),
            within_s=self._call_s,
            what=f"export to {folder}",
        )


def _by_example(
    assignment: Sequence[Sequence[Sequence[Row[int]]]], values_by_rank: Sequence[Sequence[Sequence[T]]]
) -> dict[int, T]:
    """Values by the index of their example, from the ranks' answers."""
    values: dict[int, T] = {}
    for micro_batches, of_rank in zip(assignment, values_by_rank, strict=True):
        for rows, of_batch in zip(micro_batches, of_rank, strict=True):
            values |= zip([i for row in rows for i in row.items], of_batch, strict=True)
    return values


def engine_support(example: TrainingExample) -> Tokens:
    """Support ids (T, K) that the rollout engine reported while it sampled.

    Raises:
        WorkerError: it reported none.
    """
    rollout = example.rollout
    if rollout.support_TK is None:
        raise WorkerError(
            f"rollout {rollout.id} of rollout worker {rollout.worker} has no support ids, which support=rollout takes "
            "from the engine. Start all roles with the same configuration."
        )
    return rollout.support_TK


def step_metrics(reports: Sequence[RankReport]) -> dict[str, float]:
    """Metrics of a step from those of its ranks: sums added, maxima compared, quantiles of all values together. A rank
    without examples reports no metrics."""
    metrics: dict[str, float] = {}
    for report in reports:
        for name, value in report.sums.items():
            metrics[name] = metrics.get(name, 0.0) + value
        for name, value in report.maxima.items():
            metrics[name] = float(np.maximum(metrics.get(name, 0.0), value))  # keeps a NaN
    for name in dict.fromkeys(name for report in reports for name in report.distributions):
        values = np.concatenate([report.distributions[name] for report in reports if name in report.distributions])
        for percent in QUANTILES if values.size else ():  # of a mixed loss, perhaps nothing was distilled
            metrics[statistic(name, f"p{percent}")] = float(np.percentile(values, percent))
    if leaked := metrics.get("leakage/teacher_nats"):
        metrics["leakage/ratio"] = metrics["leakage/target_nats"] / leaked
    return metrics
