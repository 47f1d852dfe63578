"""The driver's teacher role: examples to teacher workers, and their log-probabilities back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from demopsd_dist.config import Config
from demopsd_dist.data.packing import assign_rows, layout_by_question
from demopsd_dist.data.records import ScoredExample, Tokens, TrainingExample
from demopsd_dist.methods import Forwards
from workers.actor_group import ActorGroup
from workers.teacher.worker import TeacherWorker


class TeacherGroup:
    """Teacher workers, each with a copy of the weights, that share the examples. Empty for a method that needs none."""

    def __init__(self, group: ActorGroup[TeacherWorker], config: Config) -> None:
        self._group, self._config = group, config
        self._sent_bytes = self._tokens = 0
        self._busy_s = 0.0

    async def score(
        self, examples: Sequence[TrainingExample], supports_TK: Sequence[Tokens] | None, forwards: Forwards
    ) -> list[ScoredExample]:
        """Score the examples on their support ids, in the order of the examples; without `supports_TK`, on the
        reference's own support."""
        if not examples:
            return []
        if not forwards.weights:
            assert supports_TK is not None
            return [ScoredExample(*row, None, None) for row in zip(examples, supports_TK, strict=True)]
        assignment = self._assignment(examples)
        started = time.monotonic()
        scores = await self._group.each(
            lambda worker, rank: worker(
                TeacherWorker.score,
                [examples[i] for i in assignment[rank]],
                None if supports_TK is None else [supports_TK[i] for i in assignment[rank]],
                forwards,
            ),
            within_s=self._config.limits.call_s,
            what=f"scores of {len(examples)} responses",
        )
        scored: dict[int, ScoredExample] = {}
        for indices, by_worker in zip(assignment, scores, strict=True):
            for i, (ids_TK, reference_TA, teacher_TA) in zip(indices, by_worker, strict=True):
                support_TK = ids_TK if supports_TK is None else supports_TK[i]
                assert support_TK is not None
                scored[i] = ScoredExample(examples[i], support_TK, reference_TA, teacher_TA)
        self._busy_s += time.monotonic() - started
        self._tokens += sum(
            item.example.response_length_tokens
            for item in scored.values()
            if item.reference_logp_TA is not None or item.teacher_logp_TA is not None
        )
        self._sent_bytes += sum(
            array.nbytes for by_worker in scores for arrays in by_worker for array in arrays if array is not None
        )
        return [scored[i] for i in range(len(examples))]

    def metrics(self) -> dict[str, float]:
        """Response tokens per second and bytes per token of the scores since the last call. A token counts once, even
        if two forwards score it."""
        tokens, sent_bytes, busy_s = self._tokens, self._sent_bytes, self._busy_s
        self._tokens, self._sent_bytes, self._busy_s = 0, 0, 0.0
        if not tokens:
            return {}
        return {"teacher/tokens_per_s": tokens / busy_s, "teacher/bytes_per_token": sent_bytes / tokens}

    async def save(self, folder: Path) -> None:
        """Write the teacher's own weights into a new folder."""
        folder.mkdir()
        await self._group.each(
            lambda worker, _: worker(TeacherWorker.save, folder.resolve()),
            within_s=self._config.limits.call_s,
            what=f"saving {folder}",
        )

    async def load(self, folder: Path) -> None:
        """Load weights that `save` wrote."""
        await self._group.each(
            lambda worker, _: worker(TeacherWorker.load, folder.resolve()),
            within_s=self._config.limits.call_s,
            what=f"weights of {folder}",
        )

    def _assignment(self, examples: Sequence[TrainingExample]) -> list[list[int]]:
        """Indices of the examples by worker: balanced by tokens; siblings stay together where the balance allows."""
        layout = layout_by_question(examples.__getitem__, self._config.model.tree_tokens)
        ranks = assign_rows(range(len(examples)), layout, len(self._group))
        return [[i for row in rank for i in row.items] for rank in ranks]
