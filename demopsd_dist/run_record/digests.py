"""Digests of the tensors of a step, to decide whether a repetition of the step computes the same.

A tensor has one digest a response, a parameter or a rank, or a single one. The digest (XXH3, 128 bits) detects
accidents and differences; it does not protect against deliberate changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from demopsd_dist.data.records import ScoredExample, StepReport, TrainingExample

Digests = dict[str, dict[str, str]]  # tensor -> row -> digest
IN_ALL = "all"

INPUTS = (
    "prompt_tokens",
    "response_tokens",
    "rollout_logp",
    "versions",
    "privileged_tokens",
    "engine_support",
    "advantage",
    "reward",
    "policy_weight",
    "distillation_weight",
)
ORDER = (
    *INPUTS,
    "support_ids",
    "reference_logp",
    "teacher_logp",
    "importance_ratio",
    "student_logp",
    "disagreement",
    "alpha",
    "token_loss",
    "entropy",
    "loss",
    "gradient_norm",
    "gradient",
    "updated_weights",
    "exp_avg",
    "exp_avg_sq",
)
"""All tensors in the order of their computation: the first that differs is the closest to the cause."""

ROWS = {
    "loss": "scalar",
    "gradient_norm": "scalar",
    "gradient": "rank",
    **dict.fromkeys(("updated_weights", "exp_avg", "exp_avg_sq"), "parameter"),
}
"""The unit of a tensor's digests. Tensors that are not listed have one digest a response."""


@dataclass(frozen=True)
class DigestDifference:
    """A tensor with digests that differ from the recorded ones.

    Attributes:
        rows: responses, parameters or ranks whose digests differ, in the order of the record.
        row_count: number of the tensor's rows.
    """

    tensor: str
    rows: tuple[str, ...]
    row_count: int

    def __str__(self) -> str:
        kind = ROWS.get(self.tensor, "response")
        if kind == "scalar":
            return self.tensor
        return f"{self.tensor} of {kind} {self.rows[0]}" + (
            f" and {len(self.rows) - 1} more of {self.row_count}"
            if len(self.rows) > 1
            else f" alone, of {self.row_count}"
        )


def hasher_of(dtype: str, row_shape: Sequence[int]) -> xxhash.xxh3_128:
    """Hasher for the bytes of values (N, *row_shape) of this NumPy type; the values may be added in pieces."""
    return xxhash.xxh3_128(f"{dtype} {list(row_shape)}".encode())


def digest_of(values: NDArray) -> str:
    """Digest of an array (N, ...)."""
    hasher = hasher_of(str(values.dtype), values.shape[1:])
    hasher.update(np.ascontiguousarray(values).data)
    return hasher.hexdigest()


def exact_text(value: float) -> str:
    """Text of a number that stands in for a digest: readable, and different for different numbers."""
    return f"{value!r}"


def input_tensors(example: TrainingExample) -> dict[str, NDArray]:
    """The tensors of an example that a step reads, by name."""
    rollout = example.rollout
    tensors: dict[str, NDArray] = {
        "prompt_tokens": rollout.prompt.tokens,
        "response_tokens": rollout.tokens_T,
        "rollout_logp": rollout.logp_T,
        "versions": rollout.version_T,
        "privileged_tokens": example.privileged_tokens,
        "advantage": np.asarray([example.advantage], np.float64),
        "reward": np.asarray([example.reward], np.float64),
    }
    if example.terms is not None:
        tensors["policy_weight"] = np.asarray([example.terms.policy], np.float64)
        tensors["distillation_weight"] = np.asarray([example.terms.distillation], np.float64)
    return tensors if rollout.support_TK is None else tensors | {"engine_support": rollout.support_TK}


def score_tensors(item: ScoredExample) -> dict[str, NDArray]:
    """The tensors that scoring adds to an example, by name."""
    tensors = {
        "support_ids": item.support_TK,
        "reference_logp": item.reference_logp_TA,
        "teacher_logp": item.teacher_logp_TA,
    }
    return {name: values for name, values in tensors.items() if values is not None}


def merge_digests(parts: Iterable[Digests]) -> Digests:
    """The union of several sets of digests, tensor by tensor."""
    merged: Digests = {}
    for part in parts:
        for tensor, rows in part.items():
            merged.setdefault(tensor, {}).update(rows)
    return merged


def input_digests(examples: Iterable[TrainingExample]) -> Digests:
    """Digests of the inputs of some examples."""
    return _by_tensor((example.id, input_tensors(example)) for example in examples)


def step_digests(scored: Sequence[ScoredExample], report: StepReport) -> Digests:
    """Digests of a step in order: its inputs, the teacher's scores, and the tensors of the learners."""
    step = input_digests(item.example for item in scored)
    step |= _by_tensor((item.id, score_tensors(item)) for item in scored)
    step |= report.digests
    for tensor, metric in (("loss", "learner/loss"), ("gradient_norm", "learner/grad_norm")):
        if metric in report.metrics:
            step[tensor] = {IN_ALL: exact_text(report.metrics[metric])}
    return {tensor: step[tensor] for tensor in ORDER if tensor in step}


def _by_tensor(rows: Iterable[tuple[str, dict[str, NDArray]]]) -> Digests:
    digests: Digests = {}
    for row, tensors in rows:
        for tensor, values in tensors.items():
            digests.setdefault(tensor, {})[row] = digest_of(values)
    return digests


def differences(recorded: Mapping[str, Mapping[str, str]], computed: Digests) -> Iterator[DigestDifference]:
    """Differences of two sets of digests in the order of computation. A digest that only one set has differs."""
    for tensor in ORDER:
        before, now = recorded.get(tensor, {}), computed.get(tensor, {})
        differing = tuple(row for row in {**before, **now} if before.get(row) != now.get(row))
        if differing:
            yield DigestDifference(tensor, differing, len({**before, **now}))
