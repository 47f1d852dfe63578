"""Loss of any method from full logits, and from teacher values on the support: the unfused forms that tests compare."""

from __future__ import annotations

from torch import Tensor

from demopsd_dist.objective import Loss, Objective, TokenViews, coarsen, reduced, top_k_support


def loss_from_logits(
    method: Objective,
    student_logits_BTV: Tensor,
    mask_BT: Tensor,
    *,
    reference_logits_BTV: Tensor | None = None,
    teacher_logits_BTV: Tensor | None = None,
    top_k: int | None = 100,
    support_BTK: Tensor | None = None,
    temperature: float = 1.0,
    importance_ratio_BT: Tensor | None = None,
    advantage_BT: Tensor | None = None,
    policy_weight_BT: Tensor | None = None,
    distillation_weight_BT: Tensor | None = None,
    weight_BT: Tensor | None = None,
    token_count: float | None = None,
) -> Loss:
    """Loss from full logits, on the student's top k unless `support_BTK` names the ids."""
    if support_BTK is None:
        support_BTK = top_k_support(student_logits_BTV.detach(), top_k)

    def atoms(logits_BTV: Tensor | None) -> Tensor | None:
        return None if logits_BTV is None else coarsen(logits_BTV.detach(), support_BTK, temperature)

    return loss_on_support(
        method,
        student_logits_BTV,
        support_BTK,
        mask_BT,
        reference_logp_BTA=atoms(reference_logits_BTV),
        teacher_logp_BTA=atoms(teacher_logits_BTV),
        temperature=temperature,
        importance_ratio_BT=importance_ratio_BT,
        advantage_BT=advantage_BT,
        policy_weight_BT=policy_weight_BT,
        distillation_weight_BT=distillation_weight_BT,
        weight_BT=weight_BT,
        token_count=token_count,
    )


def loss_on_support(
    method: Objective,
    student_logits_BTV: Tensor,
    support_BTK: Tensor | None,
    mask_BT: Tensor,
    *,
    reference_logp_BTA: Tensor | None = None,
    teacher_logp_BTA: Tensor | None = None,
    temperature: float = 1.0,
    importance_ratio_BT: Tensor | None = None,
    advantage_BT: Tensor | None = None,
    policy_weight_BT: Tensor | None = None,
    distillation_weight_BT: Tensor | None = None,
    weight_BT: Tensor | None = None,
    token_count: float | None = None,
) -> Loss:
    """Loss from the student's logits and the values that a teacher worker sends for the support."""
    views = TokenViews(
        coarsen(student_logits_BTV, support_BTK, temperature),
        reference_logp_BTA,
        teacher_logp_BTA,
        importance_ratio_BT,
        advantage_BT,
        has_tail=support_BTK is not None,
        policy_weight_BT=policy_weight_BT,
        distillation_weight_BT=distillation_weight_BT,
    )
    return reduced(method, views, mask_BT, weight_BT=weight_BT, token_count=token_count)
