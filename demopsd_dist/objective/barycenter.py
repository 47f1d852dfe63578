"""Gates and reverse-KL barycenter, which make DemoPSD: disagreement -> alpha -> target. Equations of arXiv 2607.02502.

s: reference without the privileged context, r: teacher with it; both over the same A atoms, no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def tanh_gate(disagreement_BT: Tensor, alpha_max: float, sensitivity: float) -> Tensor:
    """alpha = (sigmoid(kappa d) - 1/2) 2 alpha_max (equation 8), in its stable form: exactly 0 at d = 0."""
    return alpha_max * torch.tanh(0.5 * sensitivity * disagreement_BT)


def threshold_gate(disagreement_BT: Tensor, alpha_max: float, sensitivity: float, threshold_nats: float) -> Tensor:
    """alpha = alpha_max sigmoid(kappa (d - threshold)). The formula is this project's: the paper names a threshold mode
    without one."""
    return alpha_max * torch.sigmoid(sensitivity * (disagreement_BT - threshold_nats))


def barycenter(reference_logp_BTA: Tensor, teacher_logp_BTA: Tensor, alpha_BT: Tensor) -> Tensor:
    """log q, q proportional to r^(1 - alpha) s^alpha: the minimiser of (1 - alpha) KL(u|r) + alpha KL(u|s) (9, 10)."""
    alpha_BT1 = alpha_BT.unsqueeze(-1)
    mixed_BTA = (1.0 - alpha_BT1) * teacher_logp_BTA + alpha_BT1 * reference_logp_BTA
    return mixed_BTA - mixed_BTA.logsumexp(-1, keepdim=True)


def fitted_sensitivity(disagreement_N: Tensor, weight_N: Tensor, alpha_max: float, mean_alpha: float) -> float:
    """kappa of `tanh_gate` for which the weighted mean of alpha is `mean_alpha`.

    The paper tunes kappa for each field; this needs no tuning. The mean grows with kappa from 0 to alpha_max times the
    share of tokens with a disagreement above 0, so that there is one solution or the limit is too low; then, and for no
    tokens, it is the end of the range, 1e-3 to 1e9.

    Args:
        disagreement_N: nats, at least 0.
        weight_N: weight of each value, for example the tokens in a bin of a histogram.
    """
    total = float(weight_N.sum())
    low, high = math.log(1e-3), math.log(1e9)
    if not total:
        return 1e-3
    for _ in range(60):
        middle = (low + high) / 2
        mean = float((tanh_gate(disagreement_N, alpha_max, math.exp(middle)) * weight_N).sum()) / total
        low, high = (middle, high) if mean < mean_alpha else (low, middle)
    return math.exp((low + high) / 2)


def budget_alpha(reference_logp_NA: Tensor, teacher_logp_NA: Tensor, lengths: Sequence[int], nats: float) -> Tensor:
    """One alpha a trajectory: the smallest for which the mean over its tokens of KL(target | reference) is at most
    `nats`; 0 where the teacher itself is that close, (N,).

    KL(target | reference) falls as alpha grows, to 0 at alpha 1, so that halving the range finds it. After the one-line
    description of TRSD (a geometric target with one weight a trajectory and a KL budget of 0.004), whose paper was not
    read.

    Args:
        reference_logp_NA: floored log-probabilities, trajectory after trajectory.
        lengths: tokens of each trajectory; their sum is N.
    """
    low_B = torch.zeros(len(lengths), dtype=reference_logp_NA.dtype, device=reference_logp_NA.device)
    high_B = torch.ones_like(low_B)
    length_B = torch.tensor(lengths, device=low_B.device)
    row_N = torch.repeat_interleave(torch.arange(len(lengths), device=low_B.device), length_B)

    def within_budget(alpha_B: Tensor) -> Tensor:
        target_NA = barycenter(reference_logp_NA, teacher_logp_NA, alpha_B[row_N])
        kl_N = (target_NA.exp() * (target_NA - reference_logp_NA)).sum(-1)
        return torch.zeros_like(alpha_B).index_add(0, row_N, kl_N) <= nats * length_B

    high_B = torch.where(within_budget(low_B), low_B, high_B)
    for _ in range(24):
        middle_B = (low_B + high_B) / 2
        within_B = within_budget(middle_B)
        low_B, high_B = torch.where(within_B, low_B, middle_B), torch.where(within_B, middle_B, high_B)
    return high_B[row_N]
