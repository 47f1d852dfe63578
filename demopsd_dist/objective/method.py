"""Types that all methods share: their input at a token, their result, and the mean over tokens.

A method is a frozen record of its settings that maps `TokenViews` to a `TokenLoss`, token by token. It does not know
where the views come from: three sets of logits (`standalone_loss.py`), or slices of the head and values that a teacher
sent for the support (`fused.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from demopsd_dist.objective.support import LEAST_LOGP

Aggregation = Literal["token_mean", "sequence_mean", "max_length"]


@dataclass(frozen=True)
class TokenViews:
    """Input of a method at each response token. Only the student's values carry a gradient.

    (B, T) stands for any leading shape. A method's own docstring names the optional ones that it needs.
    """

    student_logp_BTA: Tensor
    reference_logp_BTA: Tensor | None = None  # without the privileged context
    teacher_logp_BTA: Tensor | None = None  # with the privileged context
    importance_ratio_BT: Tensor | None = None  # probability of the sampled token now, over the engine's when it sampled
    advantage_BT: Tensor | None = None
    has_tail: bool = True  # the last atom is the tail bucket; False where the atoms are the vocabulary
    learner_ratio_BT: Tensor | None = None  # the same over the learner's before the batch's first update; None is 1
    alpha_BT: Tensor | None = None  # weight of the reference, from a gate that looks at whole trajectories
    policy_weight_BT: Tensor | None = None  # of the two terms of a mixed loss
    distillation_weight_BT: Tensor | None = None


@dataclass(frozen=True)
class TokenLoss:
    """Result of a method at each token, (B, T) each. `means` and `distributions` are recorded and carry no gradient."""

    loss_BT: Tensor
    means: dict[str, Tensor] = field(default_factory=dict)  # metric -> values to average
    distributions: dict[str, Tensor] = field(default_factory=dict)  # metric -> values whose quantiles are recorded too


class Objective(Protocol):
    """A method: `DemoPSD`, `SDPO`, `OPSD`, `GRPO`, `Mixed`, or a user's own."""

    def __call__(self, views: TokenViews) -> TokenLoss:
        """Loss of each token, and the values of each token that are recorded."""
        ...


@dataclass(frozen=True)
class Loss:
    """A method's loss over a batch, or over a part of it.

    `metrics` are means over the mask, or sums divided by `token_count`: those of all shards then add up.
    """

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
        weight_BT: weight of each token's loss, see `token_weight`; None for 1 / token_count.
        token_count: tokens of the *global* batch; None for this mask's own sum.

    Raises:
        ValueError: the shapes of mask, reference or teacher do not fit the student's.
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
    token_loss = method(_neutral_where_masked(views, mask_BT))
    count = max(float(mask_BT.sum()) if token_count is None else token_count, 1.0)
    loss_BT = torch.where(mask_BT, token_loss.loss_BT, 0.0)
    total = loss_BT.sum() / count if weight_BT is None else (loss_BT * weight_BT).sum()

    def mean(value_BT: Tensor) -> Tensor:
        """Sum over the mask, divided by `token_count` where that is given: this shard's part of the global mean."""
        return torch.where(mask_BT, value_BT.detach().to(loss_BT.dtype), 0.0).sum() / count

    distributions = {name: value.detach() for name, value in token_loss.distributions.items()}
    metrics = {"learner/loss": total.detach()} | {name: mean(value) for name, value in token_loss.means.items()}
    metrics |= {statistic(name, "mean"): mean(value) for name, value in distributions.items()}
    return Loss(total, loss_BT, metrics, distributions)


def token_weight(
    aggregation: Aggregation, length_B: Tensor, *, token_count: float, sequence_count: float, max_tokens: float
) -> Tensor:
    """Weight of each token of B responses, (B,). Over a whole batch they add up to 1, except with `max_length`.

    Args:
        aggregation: `token_mean` 1 / tokens (DAPO, SDPO); `sequence_mean` 1 / (responses x its length) (GRPO);
            `max_length` 1 / (responses x longest allowed) (Dr. GRPO).
        length_B: response tokens of each response.
        token_count: response tokens of the *global* batch.
        sequence_count: responses of the global batch.
        max_tokens: the longest response that sampling allows.

    Raises:
        ValueError: the aggregation is none of the three.
    """
    lengths_B = length_B.clamp(min=1).double()
    if aggregation == "token_mean":
        return lengths_B.new_full(lengths_B.shape, 1.0 / max(token_count, 1.0))
    if aggregation == "sequence_mean":
        return 1.0 / (max(sequence_count, 1.0) * lengths_B)
    if aggregation == "max_length":
        return lengths_B.new_full(lengths_B.shape, 1.0 / (max(sequence_count, 1.0) * max_tokens))
    raise ValueError(f"aggregation={aggregation!r}: give token_mean, sequence_mean or max_length.")


def statistic(name: str, kind: str) -> str:
    """Name of a distribution's statistic: `demopsd/disagreement_p95_nats` for `p95`; the unit stays last."""
    stem, unit, _ = name.partition("_nats")
    return f"{stem}_{kind}{unit}"


def weighed(loss_BT: Tensor, importance_ratio_BT: Tensor | None, clip: float) -> Tensor:
    """The loss times min(importance ratio, clip), the ratio without gradient (truncated importance sampling)."""
    return loss_BT if importance_ratio_BT is None else loss_BT * importance_ratio_BT.detach().clamp(max=clip)


def _neutral_where_masked(views: TokenViews, mask_BT: Tensor) -> TokenViews:
    """Replace all values at masked tokens by the student's own, so that no NaN of padding gets into a gradient, and
    -inf at any token by `LEAST_LOGP`, the log-probability that stands for 0."""
    student_BTA = views.student_logp_BTA.detach()

    def neutral(values_BTA: Tensor | None) -> Tensor | None:
        if values_BTA is None:
            return None
        values_BTA = torch.where(mask_BT.unsqueeze(-1), values_BTA.detach().to(student_BTA.dtype), student_BTA)
        return values_BTA.clamp_(min=LEAST_LOGP)

    def one(ratio_BT: Tensor | None) -> Tensor | None:
        return None if ratio_BT is None else torch.where(mask_BT, ratio_BT.detach(), 1.0)

    return replace(
        views,
        reference_logp_BTA=neutral(views.reference_logp_BTA),
        teacher_logp_BTA=neutral(views.teacher_logp_BTA),
        importance_ratio_BT=one(views.importance_ratio_BT),
        learner_ratio_BT=one(views.learner_ratio_BT),
        alpha_BT=one(views.alpha_BT),
    )
