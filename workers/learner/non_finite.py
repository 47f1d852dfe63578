"""Cause of a loss or gradient that is not finite: the first tensor with such a value, in the order of a step.

The learner computes the refused step once more, with a `NonFiniteSearch` as its observer. Other roles' values come
first, then parameters by name, the student's logits, the loss of a token, and gradients by name, last layer first.
Log-probabilities of -inf from a teacher are legal: a token of probability 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from demopsd_dist.objective import Loss, TokenSlice, TokenViews
from workers.learner.loss_inputs import LossInputs
from workers.weights.tensor_groups import NamedParameters, NamedTensors

SENT, PARAMETER, LOGITS, LOSS, GRADIENT = range(5)  # order within a step
_RESUME = "then resume from the last checkpoint."
_ENGINE_FIX = f"The rollout engine computed it: read its log, try another model.precision, {_RESUME}"
_TEACHER_FIX = f"The teacher worker computed them: check its weights, try another model.precision, {_RESUME}"
_REWARD_FIX = "Correct the rewards that it is computed from."
_PARAMETER_FIX = "The weights were damaged before this step: go back to an earlier checkpoint (--resume-from)."
_FORWARD_FIX = f"All weights are finite: the model's forward overflows there. Try model.precision=float32, {_RESUME}"
_LOSS_FIX = "All that it is computed from is finite: the method's settings overflow."
_BACKWARD_FIX = (
    f"Weights and loss are finite: the backward pass overflows there. Try model.precision=float32, {_RESUME}"
)
NOTHING_FOUND = (
    "computed again, every tensor of the step is finite. Check the hardware of the learners and their network, "
    + _RESUME
)


@dataclass(frozen=True, order=True)
class NonFinite:
    """A tensor with a value that is not finite; those of an earlier part of the step sort first."""

    order: int
    problem: str
    fix: str


class NonFiniteSearch:
    """Observer that finds the first tensor that is not finite; `found` is None if all are."""

    def __init__(self) -> None:
        self.found: NonFinite | None = None

    def add_slice(self, inputs: LossInputs, part: TokenSlice, views: TokenViews, result: Loss) -> None:
        """Look for numbers that are not finite in the inputs, logits and losses of a slice of tokens."""
        engine_N, advantage_N = inputs.rollout_logp_N[part.tokens], inputs.advantage_N[part.tokens]
        self._look(SENT, "the rollout engine's log-probability", engine_N, _ENGINE_FIX, inputs, part)
        self._look(SENT, "the advantage", advantage_N, _REWARD_FIX, inputs, part)
        for name, logp_NA in (("reference", views.reference_logp_BTA), ("teacher", views.teacher_logp_BTA)):
            if logp_NA is not None:
                legal_NA = logp_NA.detach().masked_fill(logp_NA == float("-inf"), 0.0)
                self._look(SENT, f"the {name}'s log-probabilities", legal_NA, _TEACHER_FIX, inputs, part)
        self._look(LOGITS, "the student's logits", part.normaliser_N1, _FORWARD_FIX, inputs, part)
        self._look(LOSS, "the loss", result.loss_BT, _LOSS_FIX, inputs, part)

    def add_parameters(self, named: NamedTensors) -> None:
        """Look at parameters and buffers; under ZeRO-3 at this rank's part of each."""
        for name, tensor in named:
            values = getattr(tensor, "ds_tensor", tensor).detach()
            if count := _bad_count(values):
                problem = f"parameter {name} has {count} of {values.numel()} values that are not finite"
                self._keep(NonFinite(PARAMETER, problem, _PARAMETER_FIX))
                return

    @contextmanager
    def gradients(self, trained: NamedParameters) -> Iterator[None]:
        """Context in which the gradients of these parameters are looked at, in the order of the backward pass."""
        hooks = [parameter.register_hook(partial(self._see_gradient, name)) for name, parameter in trained]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _see_gradient(self, name: str, gradient: Tensor) -> None:
        if (self.found is None or self.found.order > GRADIENT) and (count := _bad_count(gradient)):
            problem = f"the gradient of {name} has {count} of {gradient.numel()} values that are not finite"
            self._keep(NonFinite(GRADIENT, problem, _BACKWARD_FIX))

    def _look(self, order: int, name: str, value_N: Tensor, fix: str, inputs: LossInputs, part: TokenSlice) -> None:
        """Look at the values of a slice's tokens, (N,) or (N, A)."""
        if not _bad_count(value_N):
            return
        bad_N = ~value_N.detach().reshape(len(value_N), -1).isfinite().all(-1)
        first = int(bad_N.nonzero()[0])
        verb = "are" if name.endswith("s") and name != "the loss" else "is"
        problem = (
            f"{name} {verb} not finite at {_place(inputs, part.tokens.start + first)}, the first of {int(bad_N.sum())} "
            f"such tokens of {len(bad_N)}"
        )
        self._keep(NonFinite(order, problem, fix))

    def _keep(self, found: NonFinite) -> None:
        """Keep a finding if it is earlier in the step than the one so far."""
        if self.found is None or found.order < self.found.order:
            self.found = found


def first_of_all_ranks(found: NonFinite | None, ranks: int) -> str:
    """Cause and fix, the same on all ranks: the earliest finding, of the lowest rank. A collective."""
    findings: list[NonFinite | None] = [None] * ranks
    torch.distributed.all_gather_object(findings, found)
    return cause_of(findings)


def cause_of(findings: Iterable[NonFinite | None]) -> str:
    """Cause and fix from the findings of all ranks, in the order of the ranks."""
    named = [
        (finding.order, rank, f"on rank {rank} {finding.problem}. {finding.fix}")
        for rank, finding in enumerate(findings)
        if finding is not None
    ]
    return min(named)[2] if named else NOTHING_FOUND


def _place(inputs: LossInputs, position: int) -> str:
    """Rollout and response token of a position in the micro-batch."""
    for rollout_id, length in zip(inputs.rollout_ids, inputs.lengths, strict=True):
        if position < length:
            return f"response token {position} of rollout {rollout_id}"
        position -= length
    raise AssertionError(position)


def _bad_count(values: Tensor) -> int:
    """Number of values that are NaN or infinite."""
    return values.numel() - int(values.detach().isfinite().sum())
