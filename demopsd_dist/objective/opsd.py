"""OPSD: on-policy self-distillation from a fixed privileged teacher, over the whole vocabulary.

    loss = (1 - b) KL(p|m) + b KL(r|m),   m = (1 - b) p + b r        (b = 0: KL(r|p), b = 1: KL(p|r))

After the published code of siyan-zhao/OPSD, `generalized_jsd_loss`. Its bound on each vocabulary entry's part of the
loss (`token_clip` there) is `term_clip`, and acts on the same terms: at b = 0 and b = 1 on r log(r/p) and p log(p/r),
some of which are negative, so that a clipped loss can be; between the ends on (1 - b) p log(p/m) + b r log(r/m), which
are never. Not implemented: a teacher cut to its top-k tokens and renormalised, which has no tail; a top-k support here
keeps one.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from demopsd_dist.objective.divergence import atom_entropy, kl_terms, skewed_jsd_terms
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
        terms_BTA = self.terms(student_BTA, teacher_BTA)
        means = {
            "entropy/teacher_nats": atom_entropy(teacher_BTA),
            **support_terms(student_BTA, teacher_BTA, views.has_tail),
        }
        if self.term_clip is not None:
            means["opsd/clipped_fraction"] = (terms_BTA.detach() > self.term_clip).any(-1)
            terms_BTA = terms_BTA.clamp(max=self.term_clip)
        return TokenLoss(weighed(terms_BTA.sum(-1), views.importance_ratio_BT, self.importance_clip), means)

    def terms(self, student_BTA: Tensor, teacher_BTA: Tensor) -> Tensor:
        """Part of each atom in the loss, before the clip. Without a clip at the ends the terms that are never negative
        take the place of the published ones: their sum and gradient are equal, with less rounding."""
        if self.term_clip is not None and self.beta == 0.0:
            return kl_terms(teacher_BTA, student_BTA)
        if self.term_clip is not None and self.beta == 1.0:
            return kl_terms(student_BTA, teacher_BTA)
        return skewed_jsd_terms(student_BTA, teacher_BTA, self.beta)

    def target(self, reference_logp_BTA: Tensor, teacher_logp_BTA: Tensor) -> Tensor:
        """Log-probabilities of the target: the teacher's."""
        return teacher_logp_BTA
