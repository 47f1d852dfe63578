"""Digests of what a step computes, tensor by tensor, to tell whether another computation of it is the same.

A tensor is told in rows: one a response, one a parameter, one a rank, or one in all. The digest (XXH3, 128 bits) is
there for accidents and differences; it is no protection from somebody who means harm.
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
"""As they come to be: the first that differs is the nearest to the cause."""

ROWS = {
    "loss": "scalar",
    "gradient_norm": "scalar",
    "gradient": "rank",
    **dict.fromkeys(("updated_weights", "exp_avg", "exp_avg_sq"), "parameter"),
}
"""What a row is of; a response where it is not here."""


@dataclass(frozen=True)
class DigestDifference:
    """A tensor of which rows are not as recorded. `rows` are their names, in the order of the record."""

    tensor: str
    rows: tuple[str, ...]
    of: int  # rows there are

    def __str__(self) -> str:
        kind = ROWS.get(self.tensor, "response")
        if kind == "scalar":
            return self.tensor
        return f"{self.tensor} of {kind} {self.rows[0]}" + (
            f" and {len(self.rows) - 1} more of {self.of}" if len(self.rows) > 1 else f" alone, of {self.of}"
        )


def hasher_of(kind: str, row_shape: Sequence[int]) -> xxhash.xxh3_128:
    """For the bytes of values (N, *row_shape) of this NumPy type, in as many pieces as one likes."""
    return xxhash.xxh3_128(f"{kind} {list(row_shape)}".encode())


def digest_of(values: NDArray) -> str:
    """Of values (N, ...)."""
    hasher = hasher_of(str(values.dtype), values.shape[1:])
    hasher.update(np.ascontiguousarray(values).data)
    return hasher.hexdigest()


def exact(value: float) -> str:
    """A number in place of a digest: all its bits, and readable."""
    return f"{value!r}"


def inputs_of(example: TrainingExample) -> dict[str, NDArray]:
    """All that a step takes from a example, by the name of the tensor."""
    rollout = example.rollout
    found: dict[str, NDArray] = {
        "prompt_tokens": rollout.prompt.tokens,
        "response_tokens": rollout.tokens_T,
        "rollout_logp": rollout.logp_T,
        "versions": rollout.version_T,
        "privileged_tokens": example.privileged_tokens,
        "advantage": np.asarray([example.advantage], np.float64),
        "reward": np.asarray([example.reward], np.float64),
    }
    return found if rollout.support_TK is None else found | {"engine_support": rollout.support_TK}


def scores_of(item: ScoredExample) -> dict[str, NDArray]:
    found = {
        "support_ids": item.support_TK,
        "reference_logp": item.reference_logp_TA,
        "teacher_logp": item.teacher_logp_TA,
    }
    return {name: values for name, values in found.items() if values is not None}


def merged(parts: Iterable[Digests]) -> Digests:
    """The rows of all of them, tensor by tensor."""
    found: Digests = {}
    for part in parts:
        for tensor, rows in part.items():
            found.setdefault(tensor, {}).update(rows)
    return found


def of_inputs(examples: Iterable[TrainingExample]) -> Digests:
    return _by_tensor((example.id, inputs_of(example)) for example in examples)


def of_step(scored: Sequence[ScoredExample], report: StepReport) -> Digests:
    """Of a whole step, in order: what went in, what the teacher said, what the learners made of it."""
    found = of_inputs(item.example for item in scored)
    found |= _by_tensor((item.id, scores_of(item)) for item in scored)
    found |= report.digests
    for tensor, metric in (("loss", "learner/loss"), ("gradient_norm", "learner/grad_norm")):
        if metric in report.metrics:
            found[tensor] = {IN_ALL: exact(report.metrics[metric])}
    return {tensor: found[tensor] for tensor in ORDER if tensor in found}


def _by_tensor(rows: Iterable[tuple[str, dict[str, NDArray]]]) -> Digests:
    found: Digests = {}
    for row, tensors in rows:
        for tensor, values in tensors.items():
            found.setdefault(tensor, {})[row] = digest_of(values)
    return found


def differences(recorded: Mapping[str, Mapping[str, str]], found: Digests) -> Iterator[DigestDifference]:
    """In the order in which tensors come to be. A row that is there in one alone differs."""
    for tensor in ORDER:
        before, now = recorded.get(tensor, {}), found.get(tensor, {})
        wrong = tuple(row for row in {**before, **now} if before.get(row) != now.get(row))
        if wrong:
            yield DigestDifference(tensor, wrong, len({**before, **now}))
