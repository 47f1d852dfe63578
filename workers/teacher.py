"""TeacherWorker: the EMA copy of the student. Scores each response with and without the privileged context."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from demopsd_dist.config import Config, Precision
from demopsd_dist.data.pack import rectangles
from demopsd_dist.data.records import Lesson, Tokens
from demopsd_dist.objective import coarsen
from workers.forward import Rectangle, ResponseModel, in_slices, load_causal_lm, support_tensor
from workers.weights import take_buckets, unpack_bucket

Logp = NDArray[np.float32]


def environment(config: Config) -> dict[str, str]:
    if config.teacher.gpus_per_worker:
        return {}
    return {"OMP_NUM_THREADS": str(config.teacher.threads), "CUDA_VISIBLE_DEVICES": ""}


class TeacherWorker:
    """State: the EMA weights, kept in float32 (at a rate of 0.05 a bfloat16 copy would lose small updates)."""

    def __init__(self, rank: int, config: Config, model_folder: Path) -> None:
        self.rank = rank
        self._config = config
        self._folder = model_folder

    def start(self) -> None:
        """Load the model. A call of its own, so that a failure comes back as this worker's error."""
        self._device = torch.device("cuda" if self._config.teacher.gpus_per_worker else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(self._config.teacher.threads)
        model = load_causal_lm(self._folder, Precision.float32).to(self._device).eval().requires_grad_(False)
        self._forward = ResponseModel(model)
        self._weights = dict(model.named_parameters())

    def receive(self, version: int, buckets: list[ray.ObjectRef]) -> int:
        """Version 0 replaces the weights; any later one moves them: teacher = (1 - eta) teacher + eta student."""
        rate = 1.0 if version == 0 else self._config.teacher.ema_rate
        for bucket in take_buckets(buckets, version, f"teacher {self.rank}", set(self._weights)):
            for name, tensor in unpack_bucket(bucket):
                self._weights[name].lerp_(tensor.to(self._device, torch.float32), rate)
        return version

    def score(self, lessons: Sequence[Lesson], supports_TK: Sequence[Tokens]) -> list[tuple[Logp, Logp]]:
        """For each lesson the EMA copy's log-probabilities (T, A): without and with the privileged view."""
        reference = self._logp([lesson.rollout.prompt.tokens for lesson in lessons], lessons, supports_TK)
        teacher = self._logp([lesson.privileged_tokens for lesson in lessons], lessons, supports_TK)
        return list(zip(reference, teacher, strict=True))

    @torch.inference_mode()
    def _logp(self, prompts: Sequence[Tokens], lessons: Sequence[Lesson], supports_TK: Sequence[Tokens]) -> list[Logp]:
        temperature = self._config.rollout.temperature
        responses = [lesson.rollout.tokens_T for lesson in lessons]
        found: list[Logp | None] = [None] * len(lessons)
        batches = rectangles(
            range(len(lessons)), lambda i: len(prompts[i]) + len(responses[i]), self._config.teacher.batch_tokens
        )
        for batch in batches:
            rectangle = Rectangle([(prompts[i], responses[i]) for i in batch], self._device)
            support_NK = support_tensor([supports_TK[i] for i in batch], self._device)
            logp_NA = self._forward(rectangle, in_slices(partial(_atoms, support_NK, temperature)))
            for i, piece in zip(batch, rectangle.split(logp_NA), strict=True):
                found[i] = piece
        return [piece for piece in found if piece is not None]


def _atoms(support_NK: torch.Tensor | None, temperature: float, logits: torch.Tensor, tokens: slice) -> torch.Tensor:
    return coarsen(logits, None if support_NK is None else support_NK[tokens], temperature)
