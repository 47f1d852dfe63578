"""Disagreement -> gate -> reverse-KL barycenter: the three lines that make DemoPSD. Equations of arXiv 2607.02502.

s: EMA reference without the privileged context, r: EMA teacher with it; both over the same A atoms, no gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LN2 = math.log(2.0)


def floored(logp_BTA: Tensor, floor: float) -> Tensor:
    """Probabilities raised to at least `floor`, renormalised, so that d is a true divergence (appendix B)."""
    clamped_BTA = logp_BTA.clamp(min=math.log(floor))
    return clamped_BTA - clamped_BTA.logsumexp(-1, keepdim=True)


def disagreement(reference_logp_BTA: Tensor, teacher_logp_BTA: Tensor) -> Tensor:
    """Jensen-Shannon divergence of s and r, (B, T), nats, in [0, ln 2] (equation 7)."""
    mixture_BTA = torch.logaddexp(reference_logp_BTA, teacher_logp_BTA) - LN2
    halves_BTA = generalised_kl_terms(reference_logp_BTA, mixture_BTA) + generalised_kl_terms(
        teacher_logp_BTA, mixture_BTA
    )
    return (0.5 * halves_BTA.sum(-1)).clamp(max=LN2)


def gate(disagreement_BT: Tensor, alpha_max: float, sensitivity: float) -> Tensor:
    """alpha = (sigmoid(kappa d) - 1/2) 2 alpha_max (equation 8), in its stable form: exactly 0 at d = 0."""
    return alpha_max * torch.tanh(0.5 * sensitivity * disagreement_BT)


def barycenter(reference_logp_BTA: Tensor, teacher_logp_BTA: Tensor, alpha_BT: Tensor) -> Tensor:
    """log q, q proportional to r^(1 - alpha) s^alpha: the minimiser of (1 - alpha) KL(u|r) + alpha KL(u|s) (9, 10)."""
    alpha_BT1 = alpha_BT.unsqueeze(-1)
    mixed_BTA = (1.0 - alpha_BT1) * teacher_logp_BTA + alpha_BT1 * reference_logp_BTA
    return mixed_BTA - mixed_BTA.logsumexp(-1, keepdim=True)


def generalised_kl_terms(p_logp_BTA: Tensor, q_logp_BTA: Tensor) -> Tensor:
    """p (log p - log q) - p + q, atom by atom: each term is >= 0.

    Summed it is KL(p|q) wherever both sum to one, with the same gradient, and it does not inherit the rounding of the
    normalisers (at V = 151,936 the plain sum in float32 is off by a third for nearly equal distributions). Where the
    two are close, `expm1` keeps what p and q themselves would cancel.
    """
    p_BTA = p_logp_BTA.exp()
    ratio_BTA = q_logp_BTA - p_logp_BTA
    close_BTA = p_BTA * (ratio_BTA.clamp(max=1.0).expm1() - ratio_BTA)
    apart_BTA = q_logp_BTA.exp() - p_BTA - p_BTA * ratio_BTA
    return torch.where(ratio_BTA < 1.0, close_BTA, apart_BTA).clamp(min=0.0)


def generalised_kl(p_logp_BTA: Tensor, q_logp_BTA: Tensor) -> Tensor:
    """KL(p|q), (B, T), nats."""
    return generalised_kl_terms(p_logp_BTA, q_logp_BTA).sum(-1)
