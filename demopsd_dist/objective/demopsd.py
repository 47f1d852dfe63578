"""DemoPSD: reverse KL of the student to the disagreement-gated barycenter (arXiv 2607.02502, equations 7 to 12).

    d = JSD(s, r)      alpha = alpha_max tanh(kappa d / 2)      q ~ r^(1 - alpha) s^alpha      loss = KL(p|q)

The target carries no gradient: neither teacher, reference, alpha nor the normaliser. With a live reference the
gradient is (1 - alpha) times that of reverse-KL SDPO; an EMA reference adds alpha times the pull to the EMA student,
which the paper's equation 13 leaves out. Left out here: alpha from the whole vocabulary over top-k atoms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from demopsd_dist.objective.barycenter import barycenter, gate, threshold_gate
from demopsd_dist.objective.divergence import disagreement, floored, generalised_kl
from demopsd_dist.objective.leakage import leakage_terms, ordering_terms, support_terms
from demopsd_dist.objective.method import Loss, TokenLoss, TokenViews, loss_from_logits, weighed


@dataclass(frozen=True)
class DemoPSD:
    """Needs a teacher, and a reference unless that is the live student itself (None)."""

    alpha_max: float = 0.15
    gate_sensitivity: float = 50.0
    floor: float = 1e-8
    importance_clip: float = 2.0
    gate: Literal["tanh", "threshold", "constant"] = "tanh"
    gate_threshold_nats: float = 0.05

    def __call__(self, views: TokenViews) -> TokenLoss:
        assert views.teacher_logp_BTA is not None
        student_BTA, reference_BTA = views.student_logp_BTA, views.reference_logp_BTA
        with torch.no_grad():
            reference_BTA = floored(student_BTA if reference_BTA is None else reference_BTA, self.floor)
            teacher_BTA = floored(views.teacher_logp_BTA, self.floor)
            disagreement_BT = disagreement(reference_BTA, teacher_BTA)
            alpha_BT = self.alpha(disagreement_BT)
            target_BTA = barycenter(reference_BTA, teacher_BTA, alpha_BT)
        means = {
            "demopsd/alpha_saturated_fraction": alpha_BT > 0.9 * self.alpha_max,
            "demopsd/disagreement_above_quarter_fraction": disagreement_BT > 0.25,
            **leakage_terms(reference_BTA, teacher_BTA, target_BTA, alpha_BT),
            **ordering_terms(reference_BTA, teacher_BTA, target_BTA),
            **support_terms(student_BTA, teacher_BTA, views.has_tail),
        }
        distributions = {"demopsd/alpha": alpha_BT, "demopsd/disagreement_nats": disagreement_BT}
        loss_BT = generalised_kl(student_BTA, target_BTA)
        return TokenLoss(weighed(loss_BT, views.importance_ratio_BT, self.importance_clip), means, distributions)

    def alpha(self, disagreement_BT: Tensor) -> Tensor:
        if self.gate == "constant":
            return torch.full_like(disagreement_BT, self.alpha_max)
        if self.gate == "threshold":
            return threshold_gate(disagreement_BT, self.alpha_max, self.gate_sensitivity, self.gate_threshold_nats)
        return gate(disagreement_BT, self.alpha_max, self.gate_sensitivity)

    def target(self, reference_logp_BTA: Tensor, teacher_logp_BTA: Tensor) -> Tensor:
        """log q, on the same atoms."""
        reference_BTA, teacher_BTA = floored(reference_logp_BTA, self.floor), floored(teacher_logp_BTA, self.floor)
        return barycenter(reference_BTA, teacher_BTA, self.alpha(disagreement(reference_BTA, teacher_BTA)))


@dataclass(frozen=True)
class DemoPSDLoss(Loss):
    alpha_BT: Tensor
    disagreement_BT: Tensor  # nats


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

    The same on values that a teacher sent: `loss_on_support(DemoPSD(...), ...)`.

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
    found = loss_from_logits(
        DemoPSD(alpha_max, gate_sensitivity, floor, importance_clip),
        student_logits_BTV,
        mask_BT,
        reference_logits_BTV=reference_logits_BTV,
        teacher_logits_BTV=teacher_logits_BTV,
        top_k=top_k,
        temperature=temperature,
        importance_ratio_BT=importance_ratio_BT,
        token_count=token_count,
    )
    distributions = (found.distributions["demopsd/alpha"], found.distributions["demopsd/disagreement_nats"])
    return DemoPSDLoss(found.loss, found.loss_BT, found.metrics, found.distributions, *distributions)
