"""Divergences of distributions over atoms, given as natural-log probabilities. Any leading shape; (B, T) is written."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LN2 = math.log(2.0)
FLOORED_ATOMS = 101  # the paper's top 100 and the tail, for which it gives a floor


def generalised_kl_terms(p_logp_BTA: Tensor, q_logp_BTA: Tensor) -> Tensor:
    """Terms p (log p - log q) - p + q of the KL divergence, atom by atom, each >= 0.

    Summed it is KL(p|q) wherever both sum to one, with the same gradient, and it does not inherit the rounding of the
    normalisers (at V = 151,936 the plain sum in float32 is off by a third for nearly equal distributions). Where the
    two are close, `expm1` keeps what p and q themselves would cancel.
    """
    p_BTA = p_logp_BTA.exp()
    ratio_BTA = q_logp_BTA - p_logp_BTA
    close_BTA = p_BTA * (ratio_BTA.clamp(max=1.0).expm1() - ratio_BTA)
    apart_BTA = q_logp_BTA.exp() - p_BTA - p_BTA * ratio_BTA
    return torch.where(ratio_BTA < 1.0, close_BTA, apart_BTA).clamp(min=0.0)


def kl_terms(p_logp_BTA: Tensor, q_logp_BTA: Tensor) -> Tensor:
    """Terms p (log p - log q) of KL(p|q), atom by atom; some are negative. The sum is that of the generalised."""
    return p_logp_BTA.exp() * (p_logp_BTA - q_logp_BTA)


def generalised_kl(p_logp_BTA: Tensor, q_logp_BTA: Tensor) -> Tensor:
    """KL divergence of p from q, KL(p|q), (B, T), nats."""
    return generalised_kl_terms(p_logp_BTA, q_logp_BTA).sum(-1)


def skewed_jsd_terms(student_logp_BTA: Tensor, teacher_logp_BTA: Tensor, weight: float) -> Tensor:
    """Terms of the skewed Jensen-Shannon divergence, atom by atom, each >= 0.

    (1 - w) KL(p|m) + w KL(r|m) with m = (1 - w) p + w r; w = 1/2 is the Jensen-Shannon divergence. At the ends, where
    this would vanish, the divergence that it tends to after rescaling: KL(r|p) at 0 (forward), KL(p|r) at 1 (reverse).
    """
    if weight == 0.0:
        return generalised_kl_terms(teacher_logp_BTA, student_logp_BTA)
    if weight == 1.0:
        return generalised_kl_terms(student_logp_BTA, teacher_logp_BTA)
    mixture_BTA = torch.logaddexp(student_logp_BTA + math.log1p(-weight), teacher_logp_BTA + math.log(weight))
    return (1.0 - weight) * generalised_kl_terms(student_logp_BTA, mixture_BTA) + weight * generalised_kl_terms(
        teacher_logp_BTA, mixture_BTA
    )


def disagreement(reference_logp_BTA: Tensor, teacher_logp_BTA: Tensor) -> Tensor:
    """Jensen-Shannon divergence of s and r, (B, T), nats, in [0, ln 2] (arXiv 2607.02502, equation 7)."""
    return skewed_jsd_terms(reference_logp_BTA, teacher_logp_BTA, 0.5).sum(-1).clamp(max=LN2)


def atom_entropy(logp_BTA: Tensor) -> Tensor:
    """Shannon entropy of the atoms, (B, T), nats. At most the vocabulary's, since the tail is one atom here."""
    return torch.special.entr(logp_BTA.exp()).sum(-1)


def floored(logp_BTA: Tensor, floor: float) -> Tensor:
    """Probabilities raised to at least `floor`, renormalised, so that d is a true divergence (appendix B).

    The floors together hold at most the mass of 101 atoms' floors, the number for which the paper gives its 1e-8: over
    more atoms each is lower. Otherwise, over a vocabulary of 151,936 tokens, the floors alone would hold 1.5e-3 of the
    mass, and the loss of a student that equals its target would be 1.1e-3 nats.
    """
    least = floor * min(1.0, FLOORED_ATOMS / logp_BTA.shape[-1])
    clamped_BTA = logp_BTA.clamp(min=math.log(least))
    return clamped_BTA - clamped_BTA.logsumexp(-1, keepdim=True)
