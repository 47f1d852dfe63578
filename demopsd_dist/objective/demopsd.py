"""DemoPSD: reverse KL of the student to the disagreement-gated barycenter (arXiv 2607.02502, equations 7 to 12).

The target carries no gradient: neither teacher, reference, alpha nor the normaliser. Left out: the paper's undefined
"threshold mode" of the gate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from demopsd_dist.objective.barycenter import barycenter, disagreement, floored, gate, generalised_kl
from demopsd_dist.objective.support import coarsen, top_k_support


@dataclass(frozen=True)
class DemoPSDLoss:
    """`metrics` are sums over the mask divided by the token count, like the loss: those of all shards add up."""

    loss: Tensor  # scalar
    loss_BT: Tensor  # nats; importance ratio applied, 0 where masked
    alpha_BT: Tensor
    disagreement_BT: Tensor  # nats
    metrics: dict[str, Tensor]


def demopsd_loss(
    student_logits_BTV: Tensor,
    reference_logits_BTV: Tensor,
    teacher_logits_BTV: Tensor,
    mask_BT: Tensor,
    *,
    top_k: int | None = 100,
    alpha_max: float = 0.15,
    gate_sensitivity: float = 50.0,
    floor: float = 1e-8,
    temperature: float = 1.0,
    importance_ratio_BT: Tensor | None = None,
    importance_clip: float = 2.0,
    token_count: float | None = None,
) -> DemoPSDLoss:
    """The loss from three sets of logits, on the live student's own top-k tokens and a tail bucket.

    Args:
        student_logits_BTV: live student; carries the gradient.
        reference_logits_BTV: EMA weights without the privileged context.
        teacher_logits_BTV: EMA weights with it.
        mask_BT: True at response tokens to learn from.
        top_k: size of the support; None for the full vocabulary.
        alpha_max: upper bound of the gate, in [0, 1].
        gate_sensitivity: kappa; the paper's beta.
        floor: least probability of an atom of teacher and reference.
        temperature: divides all three logits.
        importance_ratio_BT: current over sampling probability of each token; None for on-policy (1).
        importance_clip: upper bound of that ratio.
        token_count: tokens of the *global* batch; None for this mask's own sum.
    """
    if not student_logits_BTV.shape == reference_logits_BTV.shape == teacher_logits_BTV.shape:
        raise ValueError(
            f"student {tuple(student_logits_BTV.shape)}, reference {tuple(reference_logits_BTV.shape)} and teacher "
            f"{tuple(teacher_logits_BTV.shape)} logits must have one shape (B, T, V)."
        )
    support_BTK = top_k_support(student_logits_BTV.detach(), top_k)
    return demopsd_loss_on_support(
        student_logits_BTV,
        support_BTK,
        coarsen(reference_logits_BTV.detach(), support_BTK, temperature),
        coarsen(teacher_logits_BTV.detach(), support_BTK, temperature),
        mask_BT,
        alpha_max=alpha_max,
        gate_sensitivity=gate_sensitivity,
        floor=floor,
        temperature=temperature,
        importance_ratio_BT=importance_ratio_BT,
        importance_clip=importance_clip,
        token_count=token_count,
    )


def demopsd_loss_on_support(
    student_logits_BTV: Tensor,
    support_BTK: Tensor | None,
    reference_logp_BTA: Tensor,
    teacher_logp_BTA: Tensor,
    mask_BT: Tensor,
    *,
    alpha_max: float = 0.15,
    gate_sensitivity: float = 50.0,
    floor: float = 1e-8,
    temperature: float = 1.0,
    importance_ratio_BT: Tensor | None = None,
    importance_clip: float = 2.0,
    token_count: float | None = None,
) -> DemoPSDLoss:
    """The same loss as the cluster computes it: the teacher sent only its values on the support (and the tail).

    `reference_logp_BTA` and `teacher_logp_BTA` are what `coarsen` gives for the two EMA forwards, before the floor.
    """
    return demopsd_loss_on_atoms(
        coarsen(student_logits_BTV, support_BTK, temperature),
        reference_logp_BTA,
        teacher_logp_BTA,
        mask_BT,
        alpha_max=alpha_max,
        gate_sensitivity=gate_sensitivity,
        floor=floor,
        importance_ratio_BT=importance_ratio_BT,
        importance_clip=importance_clip,
        token_count=token_count,
    )


def demopsd_loss_on_atoms(
    student_logp_BTA: Tensor,
    reference_logp_BTA: Tensor,
    teacher_logp_BTA: Tensor,
    mask_BT: Tensor,
    *,
    alpha_max: float = 0.15,
    gate_sensitivity: float = 50.0,
    floor: float = 1e-8,
    importance_ratio_BT: Tensor | None = None,
    importance_clip: float = 2.0,
    token_count: float | None = None,
) -> DemoPSDLoss:
    """The loss itself, on three sets of log-probabilities over the same atoms; the first carries the gradient."""
    if mask_BT.shape != student_logp_BTA.shape[:-1]:
        raise ValueError(f"mask {tuple(mask_BT.shape)} does not fit student atoms {tuple(student_logp_BTA.shape)}.")
    mask_BT = mask_BT.bool()
    if not student_logp_BTA.shape == reference_logp_BTA.shape == teacher_logp_BTA.shape:
        raise ValueError(
            f"student has atoms {tuple(student_logp_BTA.shape)}, reference {tuple(reference_logp_BTA.shape)}, teacher "
            f"{tuple(teacher_logp_BTA.shape)}; with a support of K ids each needs K + 1."
        )
    with torch.no_grad():
        reference_BTA = floored(reference_logp_BTA.to(student_logp_BTA.dtype), floor)
        teacher_BTA = floored(teacher_logp_BTA.to(student_logp_BTA.dtype), floor)
        disagreement_BT = disagreement(reference_BTA, teacher_BTA)
        alpha_BT = gate(disagreement_BT, alpha_max, gate_sensitivity)
        target_BTA = barycenter(reference_BTA, teacher_BTA, alpha_BT)
    loss_BT = generalised_kl(student_logp_BTA, target_BTA)
    if importance_ratio_BT is not None:
        loss_BT = loss_BT * importance_ratio_BT.detach().clamp(max=importance_clip)
    loss_BT = torch.where(mask_BT, loss_BT, 0.0)
    count = max(float(mask_BT.sum()) if token_count is None else token_count, 1.0)

    def mean(value_BT: Tensor) -> Tensor:
        return torch.where(mask_BT, value_BT.detach().to(loss_BT.dtype), 0.0).sum() / count

    with torch.no_grad():
        metrics = {
            "demopsd/loss": mean(loss_BT),
            "demopsd/alpha_mean": mean(alpha_BT),
            "demopsd/alpha_saturated_fraction": mean(alpha_BT > 0.9 * alpha_max),
            "demopsd/disagreement_mean_nats": mean(disagreement_BT),
            "demopsd/disagreement_above_quarter_fraction": mean(disagreement_BT > 0.25),
            "demopsd/teacher_leak_nats": mean(generalised_kl(teacher_BTA, reference_BTA)),
            "demopsd/target_leak_nats": mean(generalised_kl(target_BTA, reference_BTA)),
        }
    return DemoPSDLoss(loss_BT.sum() / count, loss_BT, alpha_BT, disagreement_BT, metrics)
