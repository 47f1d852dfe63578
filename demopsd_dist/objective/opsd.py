"""OPSD: on-policy self-distillation from a fixed privileged teacher, over the whole vocabulary.

    loss = (1 - b) KL(p|m) + b KL(r|m),   m = (1 - b) p + b r        (b = 0: KL(r|p), b = 1: KL(p|r))

After the published code of siyan-zhao/OPSD. Its later bound on each vocabulary entry's part of the loss is `term_clip`;
it acts here on terms that are never negative (p log(p/m) - p + m), there on terms that may be. Not implemented: a
teacher cut to its top-k tokens and renormalised, which has no tail; a top-k support here keeps one.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from demopsd_dist.objective.divergence import atom_entropy, skewed_jsd_terms
from demopsd_dist.objective.leakage import support_terms
from demopsd_dist.objective.method import TokenLoss, TokenViews, weighed


@dataclass(frozen=True)
class OPSD:
    """Settings of the method. Needs a teacher, and no reference."""

    beta: float = 0.5
    term_clip: float | None = None
    importance_clip: float = 2.0

    def __call__(self, views: TokenViews) -> TokenLoss:
        """Loss of each token, and the values of each token that are averaged into metrics."""
        assert views.teacher_logp_BTA is not None
        student_BTA, teacher_BTA = views.student_logp_BTA, views.teacher_logp_BTA
        terms_BTA = skewed_jsd_terms(student_BTA, teacher_BTA, self.beta)
        means = {
            "entropy/teacher_nats": atom_entropy(teacher_BTA),
            **support_terms(student_BTA, teacher_BTA, views.has_tail),
        }
        if self.term_clip is not None:
            means["opsd/clipped_fraction"] = (terms_BTA.detach() > self.term_clip).any(-1)
            terms_BTA = terms_BTA.clamp(max=self.term_clip)
        return TokenLoss(weighed(terms_BTA.sum(-1), views.importance_ratio_BT, self.importance_clip), means)

    def target(self, reference_logp_BTA: Tensor, teacher_logp_BTA: Tensor) -> Tensor:
        """Log-probabilities of the target: the teacher's."""
        return teacher_logp_BTA
