"""DemoPSD: reverse KL of the student to the disagreement-gated barycenter (arXiv 2607.02502, equations 7 to 12).

    d = JSD(s, r)      alpha = alpha_max tanh(kappa d / 2)      q ~ r^(1 - alpha) s^alpha      loss = KL(p|q)

with the student p, the reference s (without the solution) and the teacher r (with the solution in its prompt).

The target carries no gradient: neither teacher, reference, alpha nor the normaliser. With a live reference the
gradient is (1 - alpha) times that of reverse-KL SDPO; an EMA reference adds alpha times the pull to the EMA student,
which the paper's equation 13 leaves out. Not implemented: alpha from the whole vocabulary over top-k atoms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from demopsd_dist.objective.barycenter import barycenter, budget_alpha, fitted_sensitivity, tanh_gate, threshold_gate
from demopsd_dist.objective.divergence import disagreement, floored, generalised_kl
from demopsd_dist.objective.leakage import leakage_terms, ordering_terms, support_terms
from demopsd_dist.objective.method import TokenLoss, TokenViews, weighed

GateName = Literal["tanh", "threshold", "constant", "fitted", "budget"]


@dataclass(frozen=True)
class GatedTarget:
    """The target of each token and the values that it is computed from; log-probabilities over the same atoms."""

    reference_BTA: Tensor  # floored
    teacher_BTA: Tensor  # floored
    disagreement_BT: Tensor  # nats
    alpha_BT: Tensor  # weight of the reference
    target_BTA: Tensor


@dataclass(frozen=True)
class DemoPSD:
    """Settings of the method. Needs a teacher, and a reference unless that is the live student itself (None)."""

    alpha_max: float = 0.15
    gate_sensitivity: float = 50.0
    floor: float = 1e-8  # of one of 101 atoms; of more atoms it is lower, see `floored`
    importance_clip: float = 2.0
    gate: GateName = "tanh"
    gate_threshold_nats: float = 0.05
    mean_alpha: float = 0.06
    kl_budget_nats: float = 0.004

    def __call__(self, views: TokenViews) -> TokenLoss:
        """Loss of each token, and the values of each token that are recorded as means or distributions."""
        assert views.teacher_logp_BTA is not None
        student_BTA, reference_BTA = views.student_logp_BTA, views.reference_logp_BTA
        gated = self.gated_target(
            student_BTA if reference_BTA is None else reference_BTA, views.teacher_logp_BTA, views.alpha_BT
        )
        atoms = (gated.reference_BTA, gated.teacher_BTA, gated.target_BTA)
        means = {
            "demopsd/alpha_saturated_fraction": gated.alpha_BT > 0.9 * self.alpha_max,
            "demopsd/disagreement_above_quarter_fraction": gated.disagreement_BT > 0.25,
            **leakage_terms(*atoms, gated.alpha_BT),
            **ordering_terms(*atoms),
            **support_terms(student_BTA, gated.teacher_BTA, views.has_tail),
        }
        distributions = {"demopsd/alpha": gated.alpha_BT, "demopsd/disagreement_nats": gated.disagreement_BT}
        loss_BT = generalised_kl(student_BTA, gated.target_BTA)
        return TokenLoss(weighed(loss_BT, views.importance_ratio_BT, self.importance_clip), means, distributions)

    @torch.no_grad()
    def gated_target(
        self, reference_logp_BTA: Tensor, teacher_logp_BTA: Tensor, alpha_BT: Tensor | None = None
    ) -> GatedTarget:
        """Disagreement, alpha and barycenter of each token (equations 7 to 11); nothing else computes alpha.

        Args:
            alpha_BT: of `trajectory_alpha`, where the gate looks at whole trajectories.
        """
        reference_BTA, teacher_BTA = floored(reference_logp_BTA, self.floor), floored(teacher_logp_BTA, self.floor)
        disagreement_BT = disagreement(reference_BTA, teacher_BTA)
        if alpha_BT is None:
            alpha_BT = self.alpha(disagreement_BT)
        target_BTA = barycenter(reference_BTA, teacher_BTA, alpha_BT)
        return GatedTarget(reference_BTA, teacher_BTA, disagreement_BT, alpha_BT, target_BTA)

    def alpha(self, disagreement_BT: Tensor) -> Tensor:
        """Weight of the reference in the target, (B, T), by the configured gate. Of the gate `fitted` these tokens are
        all that it is fitted to; the learner fits it to a whole step, see `fit`.

        Raises:
            ValueError: the gate is `budget`, which needs trajectories.
        """
        if self.gate == "budget":
            raise ValueError("gate=budget needs whole trajectories: give alpha_BT of trajectory_alpha.")
        if self.gate == "fitted":
            return self.fit(disagreement_BT.flatten(), torch.ones_like(disagreement_BT).flatten()).alpha(
                disagreement_BT
            )
        if self.gate == "constant":
            return torch.full_like(disagreement_BT, self.alpha_max)
        if self.gate == "threshold":
            return threshold_gate(disagreement_BT, self.alpha_max, self.gate_sensitivity, self.gate_threshold_nats)
        return tanh_gate(disagreement_BT, self.alpha_max, self.gate_sensitivity)

    def fit(self, disagreement_N: Tensor, weight_N: Tensor) -> DemoPSD:
        """The method with a tanh gate whose sensitivity gives these disagreements the mean `mean_alpha`."""
        sensitivity = fitted_sensitivity(disagreement_N, weight_N, self.alpha_max, self.mean_alpha)
        return replace(self, gate="tanh", gate_sensitivity=sensitivity)

    @torch.no_grad()
    def trajectory_alpha(
        self, reference_logp_NA: Tensor, teacher_logp_NA: Tensor, lengths: Sequence[int]
    ) -> Tensor | None:
        """Alpha of each token of these trajectories, (N,), for the gate `budget`; None for gates that look at single
        tokens. At most `alpha_max`."""
        if self.gate != "budget":
            return None
        reference_NA, teacher_NA = floored(reference_logp_NA, self.floor), floored(teacher_logp_NA, self.floor)
        return budget_alpha(reference_NA, teacher_NA, lengths, self.kl_budget_nats).clamp(max=self.alpha_max)

    def target(self, reference_logp_BTA: Tensor, teacher_logp_BTA: Tensor, alpha_BT: Tensor | None = None) -> Tensor:
        """Log of the barycenter, on the same atoms."""
        return self.gated_target(reference_logp_BTA, teacher_logp_BTA, alpha_BT).target_BTA
