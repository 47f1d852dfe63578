"""Effect of the teacher's rounding on the loss: the same examples scored by a teacher in float32 and one in bfloat16.

The student is the same model in float32, so that whatever differs comes from the teacher.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demopsd_dist.config import Config, Precision
from demopsd_dist.data.records import BatchSize, ScoredExample, Tokens, TrainingExample
from demopsd_dist.methods import objective_of, resolve_method
from demopsd_dist.objective import OutputHead, TokenSlice, fused_loss, reduced
from workers.forward import PaddedBatch, ResponseModel, in_slices, load_causal_lm, vocabulary_rows
from workers.learner.loss_inputs import LossInputs
from workers.learner.observers.step_metrics import StepMetrics
from workers.teacher.worker import TeacherWorker

CPU = torch.device("cpu")
PERCENTS = (50, 95, 99)
CHUNK = 1 << 20


@dataclass(frozen=True)
class StepFigures:
    """Loss of a batch, its gradient over all weights, and disagreement and alpha of each token."""

    loss: float
    gradient: Tensor
    disagreement_N: NDArray[np.float32]
    alpha_N: NDArray[np.float32]


def student_of(folder: Path, precision: Precision = Precision.float32) -> ResponseModel:
    """Model of a folder, in eval mode."""
    return ResponseModel(load_causal_lm(folder, precision).eval())


def supports_of(student: ResponseModel, examples: Sequence[TrainingExample], config: Config) -> list[Tokens]:
    """The student's most likely tokens at each position, as the learners choose them."""
    top_k = min(resolve_method(config).top_k or 0, vocabulary_rows(student.model) - 1)
    supports: list[Tokens] = []
    with torch.no_grad():
        for example in examples:
            batch = _batch([example])
            supports += batch.split(student(batch, in_slices(lambda logits, _: logits.topk(top_k).indices.int())))
    return supports


def score(
    config: Config, folder: Path, examples: Sequence[TrainingExample], supports: Sequence[Tokens], rounds: int = 1
) -> tuple[list[ScoredExample], float]:
    """Score the examples by a teacher worker of this config in this process.

    Returns:
        The scored examples, and the seconds of the fastest round.
    """
    worker = TeacherWorker(0, config, folder)
    worker.start()
    forwards, fastest_s = resolve_method(config).forwards, float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        scores = worker.score(examples, supports, forwards)
        fastest_s = min(fastest_s, time.perf_counter() - started)
    scored = [
        ScoredExample(example, support, reference, teacher)
        for example, support, (_, reference, teacher) in zip(examples, supports, scores, strict=True)
    ]
    return scored, fastest_s


def step_of(student: ResponseModel, scored: Sequence[ScoredExample], config: Config) -> StepFigures:
    """Loss and gradient of a batch, by the learners' own parts."""
    tokens = sum(item.example.response_length_tokens for item in scored)
    size, objective, metrics = BatchSize(tokens, len(scored)), objective_of(config), StepMetrics(tokens)
    student.zero_grad()
    for item in scored:
        inputs = LossInputs.from_examples(
            [item],
            aggregation=resolve_method(config).aggregation.value,
            size=size,
            max_tokens=config.rollout.max_response_tokens,
            version=0,
            device=CPU,
        )

        def loss_of(part: TokenSlice, inputs: LossInputs = inputs) -> Tensor:
            views = inputs.views(part)
            result = reduced(objective, views, weight_BT=inputs.weight_N[part.tokens], token_count=tokens)
            with torch.no_grad():
                metrics.add_slice(inputs, part, views, result)
            return result.loss

        def loss(head: OutputHead, hidden_NH: Tensor, inputs: LossInputs = inputs) -> Tensor:
            return fused_loss(hidden_NH, head, inputs.support_NK, loss_of, temperature=config.rollout.temperature)

        student(_batch([item.example]), loss).backward()
    report = metrics.report()
    gradient = torch.cat([weight.grad.flatten() for weight in student.parameters() if weight.grad is not None])
    return StepFigures(
        report.sums["learner/loss"],
        gradient.clone(),
        report.distributions["demopsd/disagreement_nats"],
        report.distributions["demopsd/alpha"],
    )


def differences(exact: StepFigures, rounded: StepFigures) -> dict[str, float]:
    """Errors of the rounded step: of single tokens as quantiles, of means, and of the gradient."""
    figures: dict[str, float] = {}
    for name in ("disagreement", "alpha"):
        one_N, other_N = (getattr(step, f"{name}_N") for step in (exact, rounded))
        error_N = np.abs(one_N - other_N)
        figures |= {f"{name}_p{percent}": float(np.percentile(error_N, percent)) for percent in PERCENTS}
        figures |= {f"{name}_max": float(error_N.max()), f"{name}_mean": float(one_N.mean())}
        figures[f"{name}_mean_error"] = float(abs(one_N.mean() - other_N.mean()))
    own, other, product = (
        _dot(*pair)
        for pair in (
            (exact.gradient, exact.gradient),
            (rounded.gradient, rounded.gradient),
            (exact.gradient, rounded.gradient),
        )
    )
    return figures | {
        "loss": exact.loss,
        "loss_error": abs(exact.loss - rounded.loss),
        "gradient_cosine": product / (own * other) ** 0.5,
        "gradient_norm_ratio": (other / own) ** 0.5,
    }


def _dot(one: Tensor, other: Tensor) -> float:
    """Scalar product in float64; float32 loses percents over so many elements."""
    pieces = zip(one.split(CHUNK), other.split(CHUNK), strict=True)
    return sum(float(a.double() @ b.double()) for a, b in pieces)


def _batch(examples: Sequence[TrainingExample]) -> PaddedBatch:
    return PaddedBatch([[(example.prompt.tokens, example.rollout.tokens_T)] for example in examples], CPU)
