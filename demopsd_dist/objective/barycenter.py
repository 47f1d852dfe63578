"""Gate and reverse-KL barycenter, which make DemoPSD: disagreement -> alpha -> target. Equations of arXiv 2607.02502.

s: reference without the privileged context, r: teacher with it; both over the same A atoms, no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tanh_gate(disagreement_BT: Tensor, alpha_max: float, sensitivity: float) -> Tensor:
    """alpha = (sigmoid(kappa d) - 1/2) 2 alpha_max (equation 8), in its stable form: exactly 0 at d = 0."""
    return alpha_max * torch.tanh(0.5 * sensitivity * disagreement_BT)


def threshold_gate(disagreement_BT: Tensor, alpha_max: float, sensitivity: float, threshold_nats: float) -> Tensor:
    """alpha = alpha_max sigmoid(kappa (d - threshold)). The formula is this project's: the paper names a threshold mode
    without one."""
    return alpha_max * torch.sigmoid(sensitivity * (disagreement_BT - threshold_nats))


def barycenter(reference_logp_BTA: Tensor, teacher_logp_BTA: Tensor, alpha_BT: Tensor) -> Tensor:
    """log q, q proportional to r^(1 - alpha) s^alpha: the minimiser of (1 - alpha) KL(u|r) + alpha KL(u|s) (9, 10)."""
    alpha_BT1 = alpha_BT.unsqueeze(-1)
    mixed_BTA = (1.0 - alpha_BT1) * teacher_logp_BTA + alpha_BT1 * reference_logp_BTA
    return mixed_BTA - mixed_BTA.logsumexp(-1, keepdim=True)
