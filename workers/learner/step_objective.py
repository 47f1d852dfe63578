"""The objective of one training step, where a gate depends on more than single tokens: on the whole step, or on whole
responses."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from demopsd_dist.config import Config, Gate
from demopsd_dist.data.records import ScoredExample
from demopsd_dist.objective import DemoPSD, Objective, disagreement, floored, gated, with_gated
from workers.learner.loss_inputs import LossInputs

BINS = 400
LEAST_NATS, MOST_NATS = 1e-9, 0.7  # of a bin; the disagreement is at most ln 2
_LOG_RANGE = math.log(MOST_NATS / LEAST_NATS)


def fit_to_step(objective: Objective, examples: Iterable[ScoredExample], device: torch.device) -> Objective:
    """The objective with its gate fitted to the disagreements of all ranks' examples. A collective for the gate
    `fitted`; every other objective is returned as it is.

    The disagreements are counted in 400 bins of equal width in their logarithm, each with its mean, so that ranks
    exchange 802 numbers.
    """
    inner = gated(objective)
    if inner is None or inner.gate != "fitted":
        return objective
    count, total = torch.zeros(BINS + 1, dtype=torch.float64), torch.zeros(BINS + 1, dtype=torch.float64)
    for example in examples:
        if example.teacher_logp_TA is None:  # of a mixed loss: it is not distilled
            continue
        d_N = disagreements(inner, example)
        bin_N = (d_N.clamp(LEAST_NATS, MOST_NATS) / LEAST_NATS).log() / _LOG_RANGE * BINS
        count.index_add_(0, bin_N.long(), torch.ones_like(d_N))
        total.index_add_(0, bin_N.long(), d_N)
    sums = torch.stack([count, total]).to(device)
    torch.distributed.all_reduce(sums)
    count, total = sums.cpu()
    return with_gated(objective, inner.fit(total / count.clamp(min=1.0), count))


def disagreements(objective: DemoPSD, example: ScoredExample) -> Tensor:
    """Disagreement of teacher and reference at each response token, float64, nats."""
    assert example.reference_logp_TA is not None, "demopsd.reference is not live where the gate is fitted"
    assert example.teacher_logp_TA is not None
    atoms = (
        torch.from_numpy(values.copy()).double() for values in (example.reference_logp_TA, example.teacher_logp_TA)
    )
    return disagreement(*(floored(logp_TA, objective.floor) for logp_TA in atoms)).clamp(min=0.0)


def with_trajectory_alpha(inputs: LossInputs, objective: Objective) -> LossInputs:
    """The inputs of a micro-batch with alpha of each response, for the gate `budget`; the same for every other one."""
    inner = gated(objective)
    if inner is None or inputs.reference_logp_NA is None or inputs.teacher_logp_NA is None:
        return inputs
    alpha_N = inner.trajectory_alpha(inputs.reference_logp_NA, inputs.teacher_logp_NA, inputs.lengths)
    return inputs if alpha_N is None else replace(inputs, alpha_N=alpha_N)


def gate_metrics(objective: Objective, config: Config) -> dict[str, float]:
    """Settings of the step's gate that change from step to step; none for a gate with fixed ones."""
    metrics: dict[str, float] = {}
    if (inner := gated(objective)) is None:
        return metrics
    if config.demopsd.gate is Gate.fitted:
        metrics["demopsd/gate_sensitivity"] = inner.gate_sensitivity
    if config.demopsd.alpha_max_final is not None:
        metrics["demopsd/alpha_max"] = inner.alpha_max
    return metrics
