"""What all methods share: what they see of a token, and how tokens become a loss.

A method is a frozen record of its settings that maps `TokenViews` to a `TokenLoss`, token by token. Where the views
come from is not its business: three sets of logits (`loss_from_logits`), values that a teacher sent for the support
(`loss_on_support`), or slices of the head (`fused.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from demopsd_dist.objective.support import coarsen, top_k_support


@dataclass(frozen=True)
class TokenViews:
    """What a method sees at each response token. Only the student's values carry a gradient.

    (B, T) stands for any leading shape. Which of the optional ones a method needs is in its own docstring.
    """

    student_logp_BTA: Tensor
    reference_logp_BTA: Tensor | None = None  # without the privileged context
    teacher_logp_BTA: Tensor | None = None  # with it
    importance_ratio_BT: Tensor | None = None  # of the sampled token: its probability now over that when sampled
    advantage_BT: Tensor | None = None
    has_tail: bool = True  # the last atom is the tail bucket; False where the atoms are the vocabulary


@dataclass(frozen=True)
class TokenLoss:
    """What a method makes of them, (B, T) each. `means` and `distributions` are for the record and carry no gradient."""

    loss_BT: Tensor
    means: dict[str, Tensor] = field(default_factory=dict)  # metric -> values to average
    distributions: dict[str, Tensor] = field(default_factory=dict)  # metric -> values whose quantiles matter too


class Objective(Protocol):
    def __call__(self, views: TokenViews) -> TokenLoss: ...


@dataclass(frozen=True)
class Loss:
    """`metrics` are means over the mask, or sums divided by `token_count`: those of all shards then add up."""

    loss: Tensor  # scalar
    loss_BT: Tensor  # nats; unweighted, 0 where masked
    metrics: dict[str, Tensor]
    distributions: dict[str, Tensor]  # (B, T); meaningless where masked


def reduced(
    method: Objective,
    views: TokenViews,
    mask_BT: Tensor | None = None,
    *,
    weight_BT: Tensor | None = None,
    token_count: float | None = None,
) -> Loss:
    """A method's loss over all unmasked tokens.

    Args:
        mask_BT: True at tokens to learn from; None for all.
        weight_BT: what a token's loss counts, see `aggregate.py`; None for 1 / token_count.
        token_count: tokens of the *global* batch; None for this mask's own sum.
    """
    shape = views.student_logp_BTA.shape
    mask_BT = (
        torch.ones(shape[:-1], dtype=torch.bool, device=views.student_logp_BTA.device)
        if mask_BT is None
        else mask_BT.bool()
    )
    if mask_BT.shape != shape[:-1]:
        raise ValueError(f"mask {tuple(mask_BT.shape)} does not fit student atoms {tuple(shape)}.")
    for name, values in (("reference", views.reference_logp_BTA), ("teacher", views.teacher_logp_BTA)):
        if values is not None and values.shape != shape:
            raise ValueError(
                f"student has atoms {tuple(shape)}, {name} {tuple(values.shape)}; with a support of K ids each needs "
                "K + 1."
            )
    found = method(_quiet_where_masked(views, mask_BT))
    count = max(float(mask_BT.sum()) if token_count is None else token_count, 1.0)
    loss_BT = torch.where(mask_BT, found.loss_BT, 0.0)
    total = loss_BT.sum() / count if weight_BT is None else (loss_BT * weight_BT).sum()

    def mean(value_BT: Tensor) -> Tensor:
        return torch.where(mask_BT, value_BT.detach().to(loss_BT.dtype), 0.0).sum() / count

    distributions = {name: value.detach() for name, value in found.distributions.items()}
    metrics = {"learner/loss": total.detach()} | {name: mean(value) for name, value in found.means.items()}
    metrics |= {statistic(name, "mean"): mean(value) for name, value in distributions.items()}
    return Loss(total, loss_BT, metrics, distributions)


def statistic(name: str, kind: str) -> str:
    """`demopsd/disagreement_nats` and `p95` to `demopsd/disagreement_p95_nats`: the unit stays last."""
    stem, unit, _ = name.partition("_nats")
    return f"{stem}_{kind}{unit}"


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
    weight_BT: Tensor | None = None,
    token_count: float | None = None,
) -> Loss:
    """A method's loss where all logits are at hand. `top_k` of the student unless `support_BTK` names the ids.

    `temperature` divides all logits.
    """
    for name, logits in (("reference", reference_logits_BTV), ("teacher", teacher_logits_BTV)):
        if logits is not None and logits.shape != student_logits_BTV.shape:
            raise ValueError(
                f"student {tuple(student_logits_BTV.shape)} and {name} {tuple(logits.shape)} logits must have one "
                "shape (B, T, V)."
            )
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
    weight_BT: Tensor | None = None,
    token_count: float | None = None,
) -> Loss:
    """The same as the cluster computes it: the teacher sent only its values on the support, as `coarsen` gives them."""
    views = TokenViews(
        coarsen(student_logits_BTV, support_BTK, temperature),
        reference_logp_BTA,
        teacher_logp_BTA,
        importance_ratio_BT,
        advantage_BT,
        has_tail=support_BTK is not None,
    )
    return reduced(method, views, mask_BT, weight_BT=weight_BT, token_count=token_count)


def weighed(loss_BT: Tensor, importance_ratio_BT: Tensor | None, clip: float) -> Tensor:
    """The loss times min(importance ratio, clip), the ratio without gradient (truncated importance sampling)."""
    return loss_BT if importance_ratio_BT is None else loss_BT * importance_ratio_BT.detach().clamp(max=clip)


def _quiet_where_masked(views: TokenViews, mask_BT: Tensor) -> TokenViews:
    """At masked tokens everyone says what the student says, so that no NaN of padding gets into a gradient."""
    student_BTA = views.student_logp_BTA.detach()

    def quiet(values_BTA: Tensor | None) -> Tensor | None:
        if values_BTA is None:
            return None
        return torch.where(mask_BT.unsqueeze(-1), values_BTA.detach().to(student_BTA.dtype), student_BTA)

    ratio_BT = views.importance_ratio_BT
    return replace(
        views,
        reference_logp_BTA=quiet(views.reference_logp_BTA),
        teacher_logp_BTA=quiet(views.teacher_logp_BTA),
        importance_ratio_BT=None if ratio_BT is None else torch.where(mask_BT, ratio_BT.detach(), 1.0),
    )
