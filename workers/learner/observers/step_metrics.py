"""Metrics of a step: sums, maxima and distributions over its slices."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from demopsd_dist.objective import Loss, TokenSlice, TokenViews
from workers.learner.loss_inputs import LossInputs
from workers.learner.observers.rank_report import RankReport


class StepMetrics:
    """Observer that adds up the loss's metrics, the student's entropy and the mismatch of trainer and rollout engine.

    Values stay on the device until `report`, so that no slice waits for a transfer. `token_count` are the response
    tokens of the global batch.
    """

    def __init__(self, token_count: int) -> None:
        self._token_count = token_count
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self._maxima: dict[str, Tensor] = {}
        self._distributions: dict[str, list[Tensor]] = defaultdict(list)

    def add_slice(self, inputs: LossInputs, part: TokenSlice, views: TokenViews, result: Loss) -> None:
        """Add one slice."""
        for name, value in result.metrics.items():
            self._add(name, value)
        for name, value in result.distributions.items():
            weight = views.distillation_weight_BT  # of a mixed loss: tokens without a teacher have no value
            self._distributions[name].append(value if weight is None else value[weight > 0])
        self._add("policy/entropy_nats", part.entropy_N.sum() / self._token_count)
        if inputs.any_fresh:
            difference_N = inputs.logp_difference(part).abs()
            fresh_N = inputs.fresh_N[part.tokens]
            self._raise_to("mismatch/logp_diff_max", torch.where(fresh_N, difference_N, 0.0).max())
            self._distributions["mismatch/logp_diff"].append(difference_N[fresh_N])

    def report(self) -> RankReport:
        """Metrics of all slices so far, on the CPU."""
        return RankReport(
            stepped=True,
            sums={name: float(value) for name, value in self._sums.items()},
            maxima={name: float(value) for name, value in self._maxima.items()},
            distributions={name: torch.cat(parts).float().cpu().numpy() for name, parts in self._distributions.items()},
        )

    def _add(self, name: str, value: Tensor) -> None:
        """Add a value to a sum."""
        self._sums[name] = value + self._sums[name].to(value.device)

    def _raise_to(self, name: str, value: Tensor) -> None:
        """Raise a maximum to a value; a NaN stays."""
        self._maxima[name] = torch.maximum(self._maxima.get(name, value), value)
