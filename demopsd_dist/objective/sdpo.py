"""SDPO: the student is trained towards the privileged teacher itself (arXiv 2601.20802).

    loss = KL(r|p) (forward_kl)   or   JSD(p, r) (jsd)   or   KL(p|r) (reverse_kl)

with p the student and r the teacher, on the student's top-k tokens and the tail bucket; off-policy, times the clipped
importance ratio. With reverse KL it is DemoPSD with alpha = 0.
Not implemented: the published mode that uses only the sampled token; the published lower bound of 1e-7 on the tail's
probability, needless here because the tail is computed exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from demopsd_dist.objective.divergence import atom_entropy, skewed_jsd_terms
from demopsd_dist.objective.leakage import support_terms
from demopsd_dist.objective.method import TokenLoss, TokenViews, weighed

Divergence = Literal["forward_kl", "jsd", "reverse_kl"]
_SKEW: dict[Divergence, float] = {"forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}


@dataclass(frozen=True)
class SDPO:
    """Settings of the method. Needs a teacher, and no reference."""

    divergence: Divergence = "jsd"
    importance_clip: float = 2.0

    def __call__(self, views: TokenViews) -> TokenLoss:
        """Loss of each token, and the values of each token that are averaged into metrics."""
        assert views.teacher_logp_BTA is not None
        student_BTA, teacher_BTA = views.student_logp_BTA, views.teacher_logp_BTA
        loss_BT = skewed_jsd_terms(student_BTA, teacher_BTA, _SKEW[self.divergence]).sum(-1)
        means = {
            "entropy/teacher_nats": atom_entropy(teacher_BTA),
            **support_terms(student_BTA, teacher_BTA, views.has_tail),
        }
        return TokenLoss(weighed(loss_BT, views.importance_ratio_BT, self.importance_clip), means)

    def target(self, reference_logp_BTA: Tensor, teacher_logp_BTA: Tensor) -> Tensor:
        """Log-probabilities of the target: the teacher's."""
        return teacher_logp_BTA
