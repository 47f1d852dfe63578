"""Float64 losses of every method from logits, written from the formulas alone: they share no code with the library.

All tensors are float64. N tokens, V vocabulary, A atoms. The student's logits carry the gradient, by autograd.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from demopsd_dist.objective import GRPO, OPSD, SDPO, DemoPSD, Objective

LOG_OF_ZERO = -60_000.0  # documented stand-in for the logarithm of a probability of 0
SKEW = {"forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}


@dataclass(frozen=True)
class ExactCase:
    """Input of one loss; logits before the temperature."""

    student_NV: Tensor
    teacher_NV: Tensor
    reference_NV: Tensor | None  # None: the live student
    support_NK: Tensor | None
    temperature: float
    ratio_N: Tensor  # learner-to-engine
    learner_ratio_N: Tensor
    advantage_N: Tensor


def atoms(logits_NV: Tensor, support_NK: Tensor | None, temperature: float) -> Tensor:
    """Log-probabilities of the support's ids and of all other ids together."""
    shifted_NV = (logits_NV - logits_NV.detach().amax(-1, keepdim=True)) / temperature
    logp_NV = shifted_NV.clamp(min=LOG_OF_ZERO).log_softmax(-1)
    if support_NK is None:
        return logp_NV
    others = torch.ones_like(logp_NV, dtype=torch.bool).scatter(-1, support_NK, False)
    tail_N1 = torch.stack([row[mask].logsumexp(-1) for row, mask in zip(logp_NV, others, strict=True)])[:, None]
    return torch.cat([logp_NV.gather(-1, support_NK), tail_N1], dim=-1)


def kl_parts(p_NA: Tensor, q_NA: Tensor) -> Tensor:
    """Terms p log(p/q), 0 where p is 0."""
    return p_NA.exp() * (p_NA - q_NA)


def divergence_parts(p_NA: Tensor, r_NA: Tensor, skew: float) -> Tensor:
    """Terms of the skewed Jensen-Shannon divergence, and of the two KL divergences at its ends."""
    if skew in (0.0, 1.0):
        return kl_parts(r_NA, p_NA) if skew == 0.0 else kl_parts(p_NA, r_NA)
    mixture_NA = torch.stack([p_NA + math.log(1 - skew), r_NA + math.log(skew)]).logsumexp(0)
    return (1 - skew) * kl_parts(p_NA, mixture_NA) + skew * kl_parts(r_NA, mixture_NA)


def gated_target(method: DemoPSD, s_NA: Tensor, r_NA: Tensor) -> Tensor:
    """Barycenter of floored reference and teacher."""
    floor = method.floor * min(1.0, 101 / s_NA.shape[-1])
    s_NA, r_NA = (x.exp().clamp(min=floor).log() for x in (s_NA, r_NA))
    s_NA, r_NA = (x - x.logsumexp(-1, keepdim=True) for x in (s_NA, r_NA))
    d_N = divergence_parts(s_NA, r_NA, 0.5).sum(-1)
    if method.gate == "constant":
        alpha_N = torch.full_like(d_N, method.alpha_max)
    elif method.gate == "threshold":
        alpha_N = method.alpha_max * torch.sigmoid(method.gate_sensitivity * (d_N - method.gate_threshold_nats))
    else:
        alpha_N = method.alpha_max * 2 * (torch.sigmoid(method.gate_sensitivity * d_N) - 0.5)
    mixed_NA = (1 - alpha_N[:, None]) * r_NA + alpha_N[:, None] * s_NA
    return mixed_NA.log_softmax(-1)


def policy_loss(method: GRPO, case: ExactCase, p_NA: Tensor, reference_NA: Tensor) -> Tensor:
    """Loss of the sampled tokens: clipped ratio, dual clip, truncated weight and k3 estimate."""
    logp_N, advantage_N = p_NA[:, 0], case.advantage_N
    engine = method.clipped_ratio == "engine"
    ratio_N = (logp_N - logp_N.detach()).exp() * (case.ratio_N if engine else case.learner_ratio_N)
    weight_N = torch.ones_like(logp_N) if engine else case.ratio_N / case.learner_ratio_N
    low, high = 1 - method.clip_low, 1 + method.clip_high
    loss_N = torch.maximum(-ratio_N * advantage_N, -ratio_N.clamp(low, high) * advantage_N)
    loss_N = torch.where(advantage_N < 0, loss_N.minimum(-method.dual_clip * advantage_N), loss_N)
    loss_N = loss_N * weight_N.clamp(max=method.importance_clip)
    x_N = (reference_NA[:, 0] - logp_N).clamp(-20, 20)
    return loss_N + method.kl_coefficient * (x_N.exp() - x_N - 1)


def token_losses(method: Objective, case: ExactCase) -> Tensor:
    """Loss of each token, (N,)."""
    p_NA, r_NA = (atoms(z_NV, case.support_NK, case.temperature) for z_NV in (case.student_NV, case.teacher_NV))
    r_NA = r_NA.clamp(min=LOG_OF_ZERO)
    s_NA = p_NA if case.reference_NV is None else atoms(case.reference_NV, case.support_NK, case.temperature)
    s_NA = s_NA.detach().clamp(min=LOG_OF_ZERO)
    if isinstance(method, GRPO):
        return policy_loss(method, case, p_NA, s_NA)
    assert isinstance(method, DemoPSD | SDPO | OPSD)
    if isinstance(method, DemoPSD):
        parts_NA = kl_parts(p_NA, gated_target(method, s_NA, r_NA))
    elif isinstance(method, SDPO):
        parts_NA = divergence_parts(p_NA, r_NA, SKEW[method.divergence])
    else:
        parts_NA = divergence_parts(p_NA, r_NA, method.beta)
        if method.term_clip is not None:
            parts_NA = parts_NA.clamp(max=method.term_clip)
    return parts_NA.sum(-1) * case.ratio_N.clamp(max=method.importance_clip)
