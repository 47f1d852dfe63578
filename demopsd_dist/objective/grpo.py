"""GRPO and its variants: the clipped policy gradient of a group-relative advantage A; no teacher.

    w = p(y) / p_rollout(y)        loss = -min(w A, clip(w, 1 - e_low, 1 + e_high) A) + c KL(p | initial model)

e_low, e_high and c are clip_low, clip_high and kl_coefficient. Where A < 0 the loss is at most -dual_clip A.
The support is the sampled token y alone. Advantages are made from a group's rewards (`data/examples.py`), responses are
weighed by `aggregate.py`. With one optimizer step per batch, on-policy training has w = 1 and never clips. The KL is
the k3 estimate exp(x) - x - 1 with x = log initial(y) - log p(y): unbiased in value on-policy, while its gradient is
that of the forward KL. Not implemented: the exact KL, masking of truncated responses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

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

    def __call__(self, views: TokenViews) -> TokenLoss:
        """Loss of each token, and the values of each token that are averaged into metrics."""
        assert views.advantage_BT is not None
        advantage_BT, logp_BT = views.advantage_BT, views.student_logp_BTA[..., 0]
        ratio_BT = (logp_BT - logp_BT.detach()).exp()  # 1, with the gradient of the log-probability
        if views.importance_ratio_BT is not None:
            ratio_BT = ratio_BT * views.importance_ratio_BT.detach()
        clipped_BT = ratio_BT.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        gain_BT = torch.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)
        gain_BT = torch.where(advantage_BT < 0, gain_BT.maximum(self.dual_clip * advantage_BT), gain_BT)
        means = {
            "grpo/clipped_fraction": gain_BT.detach() != (ratio_BT * advantage_BT).detach(),
            "grpo/advantage_abs_mean": advantage_BT.abs(),
        }
        if self.kl_coefficient == 0.0:
            return TokenLoss(-gain_BT, means)
        assert views.reference_logp_BTA is not None
        x_BT = (views.reference_logp_BTA[..., 0] - logp_BT).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
        kl_BT = x_BT.expm1() - x_BT
        return TokenLoss(self.kl_coefficient * kl_BT - gain_BT, means | {"grpo/kl_nats": kl_BT.detach()})
