"""Forwards of the student without a gradient: its most likely tokens, and its log-probabilities on a support."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from demopsd_dist.config import Config
from demopsd_dist.data.records import Logp, Tokens, TrainingExample
from demopsd_dist.methods import MethodSpec
from demopsd_dist.objective import coarsen
from workers.cluster.spans import Traced, traced
from workers.forward import PaddedBatch, in_slices, release_gpu_cache, support_tensor, vocabulary_rows


class StudentForwards(Traced):
    """Part of the learner's actor that runs the student for others."""

    _config: Config
    _method: MethodSpec
    _engine: Any
    _device: torch.device

    def __init__(self) -> None:
        super().__init__()
        self._forward_counts: Counter[str] = Counter()

    @traced
    def support(
        self, micro_batches: Sequence[Sequence[Sequence[TrainingExample]]], top_k: int | None = None
    ) -> list[list[Tokens]]:
        """Compute the student's top-k ids (T, K) at each response token; K is less than the vocabulary's size, so that
        the tail has a token.

        Args:
            micro_batches: each a list of rows of examples.
            top_k: number of ids; None for the method's.

        Returns:
            A list for each micro-batch: the ids of its examples, row after row.
        """
        count = min(top_k or self._method.top_k or 0, vocabulary_rows(self._engine.module.model) - 1)
        supports = []
        with torch.no_grad():
            for rows in micro_batches:
                batch = self._padded_batch(rows)
                ids_NK = self._engine(batch, in_slices(lambda logits, _: logits.topk(count).indices.int()))
                supports.append(batch.split(ids_NK) if rows else [])
                self._forward_counts["student/support" if top_k is None else "student/drift"] += sum(map(len, rows))
        release_gpu_cache(self._config, self._device)
        return supports

    @traced
    def logp(
        self, micro_batches: Sequence[Sequence[Sequence[TrainingExample]]], supports: Sequence[Sequence[Tokens]]
    ) -> list[list[Logp]]:
        """Compute the student's log-probabilities (T, K + 1) on support ids and the tail.

        Args:
            micro_batches: each a list of rows of examples.
            supports: ids (T, K) of the examples of each micro-batch, row after row.

        Returns:
            A list for each micro-batch: the values of its examples, row after row.
        """
        answers: list[list[Logp]] = []
        with torch.no_grad():
            for rows, ids in zip(micro_batches, supports, strict=True):
                batch = self._padded_batch(rows)
                ids_NK = support_tensor(ids, self._device) if rows else None

                def atoms(logits_NV: Tensor, tokens: slice, ids_NK: Tensor | None = ids_NK) -> Tensor:
                    of_slice = None if ids_NK is None else ids_NK[tokens]
                    return coarsen(logits_NV, of_slice, self._config.rollout.temperature)

                logp_NA = self._engine(batch, in_slices(atoms))
                answers.append(batch.split(logp_NA.float()) if rows else [])
                self._forward_counts["student/drift"] += sum(map(len, rows))
        release_gpu_cache(self._config, self._device)
        return answers

    def forward_counts(self) -> Counter[str]:
        """Count the responses that went through each forward since the start: `student/support`, `student/gradient`,
        and `student/drift` for the distance to the initial model."""
        return self._forward_counts

    def _padded_batch(self, rows: Sequence[Sequence[TrainingExample]]) -> PaddedBatch:
        """Pad rows of examples, with the student's prompts."""
        samples = [[(example.prompt.tokens, example.rollout.tokens_T) for example in row] for row in rows]
        return PaddedBatch(samples, self._device)
