"""SDPO: the student fits its privileged teacher outright (arXiv 2601.20802).

    loss = KL(r|p)   or   JSD(p, r)   or   KL(p|r)

on the student's top-k tokens and the tail bucket. It is DemoPSD with alpha = 0 where the divergence is reverse KL.
Left out: the mode that looks at the sampled token alone; the bound of the published code on the tail's mass (at least
1e-7), since the tail is exact here.
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
        """Loss and means of each token."""
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
