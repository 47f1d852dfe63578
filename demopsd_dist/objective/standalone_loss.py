"""The DemoPSD loss from three logits tensors, for use in another trainer. This project's own learners do not call it:
their logits never exist as one tensor (`fused.py`), and the teacher sends them values on the support alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from demopsd_dist.objective.demopsd import DemoPSD
from demopsd_dist.objective.method import Loss, TokenViews, reduced
from demopsd_dist.objective.support import coarsen, top_k_support


@dataclass(frozen=True)
class DemoPSDLoss(Loss):
    """Result of `demopsd_loss`.

    `loss` is the scalar mean in nats per token, to call `backward` on; `loss_BT` has the loss of each token, and
    `metrics` scalars by name, which add up over shards that were given one `token_count`. Alpha and disagreement are
    meaningless where masked.
    """

    alpha_BT: Tensor  # weight of the reference in the target, 0 .. alpha_max
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
    """DemoPSD loss on the live student's top-k tokens and a tail bucket (arXiv 2607.02502, equations 7 to 12).

    Example:
        >>> import torch
        >>> from demopsd_dist.objective import demopsd_loss
        >>> student, reference, teacher = torch.randn(3, 2, 5, 200)  # each (B, T, V); position t predicts token t
        >>> result = demopsd_loss(student.requires_grad_(), reference, teacher, mask_BT=torch.ones(2, 5))
        >>> result.loss.backward()
        >>> result.alpha_BT.shape, student.grad.shape
        (torch.Size([2, 5]), torch.Size([2, 5, 200]))

    Args:
        student_logits_BTV: live student; carries the gradient.
        reference_logits_BTV: EMA weights without the privileged context.
        teacher_logits_BTV: EMA weights with it.
        mask_BT: True or 1 at response tokens to learn from.
        top_k: size of the support; None for the full vocabulary.
        alpha_max: upper bound of the gate, in [0, 1].
        gate_sensitivity: kappa; the paper's beta.
        floor: least probability of an atom of teacher and reference.
        temperature: divides all three logits.
        importance_ratio_BT: current over sampling probability of each token; None for on-policy (1).
        importance_clip: upper bound of that ratio.
        token_count: tokens of the *global* batch; None for this mask's own sum.

    Raises:
        ValueError: shapes do not fit, or `top_k` is less than 1.
    """
    _require_one_shape(student_logits_BTV, reference=reference_logits_BTV, teacher=teacher_logits_BTV)
    support_BTK = top_k_support(student_logits_BTV.detach(), top_k)
    views = TokenViews(
        coarsen(student_logits_BTV, support_BTK, temperature),
        coarsen(reference_logits_BTV.detach(), support_BTK, temperature),
        coarsen(teacher_logits_BTV.detach(), support_BTK, temperature),
        importance_ratio_BT,
        has_tail=support_BTK is not None,
    )
    method = DemoPSD(alpha_max, gate_sensitivity, floor, importance_clip)
    return _with_gate_values(reduced(method, views, mask_BT, token_count=token_count))


def _require_one_shape(student_BTV: Tensor, **others: Tensor) -> None:
    """Check that all logits have the student's shape."""
    for name, logits_BTV in others.items():
        if logits_BTV.shape != student_BTV.shape:
            raise ValueError(
                f"student {tuple(student_BTV.shape)} and {name} {tuple(logits_BTV.shape)} logits must have one "
                "shape (B, T, V)."
            )


def _with_gate_values(loss: Loss) -> DemoPSDLoss:
    """Add alpha and disagreement as fields of their own."""
    alpha_BT = loss.distributions["demopsd/alpha"]
    disagreement_BT = loss.distributions["demopsd/disagreement_nats"]
    return DemoPSDLoss(loss.loss, loss.loss_BT, loss.metrics, loss.distributions, alpha_BT, disagreement_BT)
