"""Mixed loss: the policy gradient of the rewards beside distillation from the teacher.

    loss = a L_policy + b L_distillation

with weights a and b of each response. The policy term is GRPO's, the distillation term that of DemoPSD or SDPO. With
one weight w for all responses a = 1 - w and b = w, as TRL's SDPO trainer mixes the two; with routing by success a right
response has a = 1, b = 0, and a wrong one that the teacher has something to show for a = 0, b = 1 (SRPO, arXiv
2604.02288). Only SRPO's abstract was read. It does not say what becomes of wrong responses without a solution; here
they have the policy gradient. The weights are made in `data/examples.py`.

`entropy_weighting` multiplies a token's distillation by exp(-H) with H the teacher's entropy in nats, so that the
teacher counts less where it is unsure. SRPO weighs by the entropy too; whether it normalises the weights is not in its
abstract, and here they are not normalised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from demopsd_dist.objective.demopsd import DemoPSD
from demopsd_dist.objective.divergence import atom_entropy
from demopsd_dist.objective.grpo import GRPO
from demopsd_dist.objective.method import Objective, TokenLoss, TokenViews
from demopsd_dist.objective.sdpo import SDPO


@dataclass(frozen=True)
class Mixed:
    """Settings of the method. Needs an advantage, a teacher, both weights of each token, and what its two terms need.

    Index 0 of the last dimension is the sampled token, for the policy term. Where a response has no teacher, its weight
    of the distillation is 0 and its teacher's values are finite and meaningless.
    """

    policy: GRPO
    distillation: DemoPSD | SDPO
    entropy_weighting: bool = False

    def __call__(self, views: TokenViews) -> TokenLoss:
        """Loss of each token, and the values of each token that are averaged into metrics; those of the distillation
        are 0 where a token has none."""
        policy_weight_BT, distillation_weight_BT = views.policy_weight_BT, views.distillation_weight_BT
        assert policy_weight_BT is not None
        assert distillation_weight_BT is not None
        assert views.teacher_logp_BTA is not None
        policy, distillation = self.policy(views), self.distillation(views)
        distilled_BT = distillation_weight_BT > 0
        if self.entropy_weighting:
            distillation_weight_BT = distillation_weight_BT * (-atom_entropy(views.teacher_logp_BTA)).exp()
        loss_BT = policy_weight_BT * policy.loss_BT + distillation_weight_BT * distillation.loss_BT
        means = {name: value * distilled_BT for name, value in distillation.means.items()}
        means |= policy.means | {
            "mixed/distilled_fraction": distilled_BT,
            "mixed/policy_loss": (policy_weight_BT * policy.loss_BT).detach(),
            "mixed/distillation_loss_nats": (distillation_weight_BT * distillation.loss_BT).detach(),
        }
        distributions = {name: value * distilled_BT for name, value in distillation.distributions.items()}
        return TokenLoss(loss_BT, means, distributions)

    def target(self, reference_logp_BTA: Tensor, teacher_logp_BTA: Tensor, *alpha_BT: Tensor) -> Tensor:
        """Log-probabilities of the distillation's target."""
        return self.distillation.target(reference_logp_BTA, teacher_logp_BTA, *alpha_BT)


def gated(objective: Objective) -> DemoPSD | None:
    """The DemoPSD loss of an objective, itself or its distillation term; None where it has no gate."""
    inner = objective.distillation if isinstance(objective, Mixed) else objective
    return inner if isinstance(inner, DemoPSD) else None


def with_gated(objective: Objective, changed: DemoPSD) -> Objective:
    """The objective with another DemoPSD loss in the place of `gated`'s."""
    return replace(objective, distillation=changed) if isinstance(objective, Mixed) else changed
