"""GRPO and its variants: the clipped policy gradient of a group-relative advantage A; no teacher.

    learner:  w = p(y) / p_old(y)           loss = -min(w A, clip(w) A) min(p_old(y) / p_rollout(y), c) + k KL
    engine:   w = p(y) / p_rollout(y)       loss = -min(w A, clip(w) A) + k KL

with clip(w) between 1 - clip_low and 1 + clip_high, c `importance_clip`, k `kl_coefficient` and KL that of the student
to the initial model. Where A < 0, min(...) is at least dual_clip A. `learner` is the rule of TRL's and verl's losses:
p_old is the learner's own probability before the first update from the batch, and the mismatch of learner and engine is
a factor without gradient, truncated and never clipped. `engine` clips both at once, so that a token whose mismatch lies
outside the clip has no gradient: stricter with stale samples, wrong where the mismatch is rounding.

With one update for each batch p is p_old, and the `learner` rule never clips. The support is the sampled token y alone.
Advantages are made from a group's rewards (`data/examples.py`), responses are weighed by `token_weight`. The KL is the
k3 estimate exp(x) - x - 1 with x = log initial(y) - log p(y): unbiased in value on-policy, while its gradient is that
of the forward KL. Not implemented: the exact KL, masking of truncated responses, ratios of whole sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from demopsd_dist.objective.method import TokenLoss, TokenViews

_MAX_LOG_RATIO = 20.0  # bound of the log ratio, so that exp stays finite


@dataclass(frozen=True)
class GRPO:
    """Settings of the method. Needs an advantage, and a reference (the initial model) unless `kl_coefficient` is 0.

    Index 0 of the last dimension is the sampled token.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 3.0
    kl_coefficient: float = 0.0
    importance_clip: float = 2.0
    clipped_ratio: Literal["learner", "engine"] = "learner"

    def __call__(self, views: TokenViews) -> TokenLoss:
        """Loss of each token, and the values of each token that are averaged into metrics."""
        assert views.advantage_BT is not None
        advantage_BT, logp_BT = views.advantage_BT, views.student_logp_BTA[..., 0]
        one_BT = (logp_BT - logp_BT.detach()).exp()  # 1, with the gradient of the log-probability
        to_clip_BT, weight_BT = self._ratios(views, one_BT.detach())
        ratio_BT = one_BT * to_clip_BT
        clipped_BT = ratio_BT.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        gain_BT = torch.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)
        gain_BT = torch.where(advantage_BT < 0, gain_BT.maximum(self.dual_clip * advantage_BT), gain_BT)
        means = {
            "grpo/clipped_fraction": gain_BT.detach() != (ratio_BT * advantage_BT).detach(),
            "grpo/truncated_fraction": weight_BT > self.importance_clip,
            "grpo/advantage_abs_mean": advantage_BT.abs(),
        }
        loss_BT = -gain_BT * weight_BT.clamp(max=self.importance_clip)
        if self.kl_coefficient == 0.0:
            return TokenLoss(loss_BT, means)
        assert views.reference_logp_BTA is not None
        x_BT = (views.reference_logp_BTA[..., 0] - logp_BT).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
        kl_BT = x_BT.expm1() - x_BT
        return TokenLoss(loss_BT + self.kl_coefficient * kl_BT, means | {"grpo/kl_nats": kl_BT.detach()})

    def _ratios(self, views: TokenViews, one_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Ratio to clip, and the weight of a token's gain before its truncation; both without gradient."""
        sampled_BT = one_BT if views.importance_ratio_BT is None else views.importance_ratio_BT.detach()
        if self.clipped_ratio == "engine":
            return sampled_BT, one_BT
        learner_BT = one_BT if views.learner_ratio_BT is None else views.learner_ratio_BT.detach()
        return learner_BT, sampled_BT / learner_BT
