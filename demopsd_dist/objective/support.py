"""Reduction of vocabulary-wide logits to K + 1 atoms: the student's top-k tokens and one bucket for all other tokens.

Without the tail bucket the restricted distributions do not sum to one, and their "KL" can go negative. The tail is
summed over the tokens outside the support (not computed as 1 - support mass, which cancels), so it is exact however
little mass it holds, and so is its gradient. Source: arXiv 2607.02502, appendix B.

The row's largest logit is subtracted before anything else, so that an offset common to all logits costs no precision.
A logit of -inf, as models give to ids that must not be sampled, is a token of probability 0: its log-probability is the
finite number `LEAST_LOGP`, and it has no gradient. NaN, +inf and a row of -inf alone stay NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_LOGP = -60_000.0  # nats; stands for log 0. float16 can hold it, and its exponential is 0 in every float type


def lifted(logits: Tensor) -> Tensor:
    """Logits in float32 if they are half-precision; float32 and float64 unchanged."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def above_least(logits_NV: Tensor, temperature: float) -> Tensor:
    """Logits minus the largest of their row, divided by the temperature, and at least `LEAST_LOGP`.

    Works in place: the argument is float32 or wider, and not used again. Differentiable.
    """
    logits_NV = logits_NV.sub_(logits_NV.detach().amax(-1, keepdim=True))
    if temperature != 1.0:
        logits_NV = logits_NV.div_(temperature)
    return logits_NV.clamp_(min=LEAST_LOGP)


def mixed_logits(one_NV: Tensor, other_NV: Tensor, rate: float) -> Tensor:
    """Logits one + rate (other - one): of a geometric mixture of two distributions. A token of probability 0 in either
    of them has none in the mixture, unless `rate` takes the other alone."""
    lowest = torch.finfo(one_NV.dtype).min / 2  # the difference of two -inf is no number, that of two of these is
    return torch.lerp(one_NV.clamp(min=lowest), other_NV.clamp(min=lowest), rate)


def check_support(ids_NK: Tensor, vocabulary: int) -> None:
    """Check support ids (any leading shape): fewer than the vocabulary, so that the tail has a token, distinct, and
    within the vocabulary.

    Raises:
        ValueError: they are not.
    """
    count = ids_NK.shape[-1]
    if not 0 < count < vocabulary:
        raise ValueError(
            f"a support of {count} ids needs a vocabulary larger than itself, and has one of {vocabulary}. Give 1 to "
            f"{vocabulary - 1} ids, or None for the whole vocabulary."
        )
    ordered_NK = ids_NK.sort(-1).values
    outside_NK = (ordered_NK < 0) | (ordered_NK >= vocabulary)
    outside_NK[..., 1:] |= ordered_NK[..., 1:] == ordered_NK[..., :-1]
    if not outside_NK.any():
        return
    *row, column = outside_NK.nonzero()[0].tolist()
    found = int(ordered_NK[(*row, column)])
    problem = "is there twice" if 0 <= found < vocabulary else f"is not in the vocabulary of {vocabulary}"
    raise ValueError(f"support ids at position {row}: id {found} {problem}. The ids of a position are distinct tokens.")


def top_k_support(logits_BTV: Tensor, top_k: int | None) -> Tensor | None:
    """Ids of the `top_k` largest logits, (B, T, K), by falling logit; None if that is the whole vocabulary.

    Raises:
        ValueError: `top_k` is less than 1.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k}: give at least 1, or None for the full vocabulary.")
    if top_k is None or top_k >= logits_BTV.shape[-1]:
        return None
    return logits_BTV.topk(top_k, dim=-1).indices


def coarsen(logits_BTV: Tensor, support_BTK: Tensor | None, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of the atoms at `temperature`.

    Args:
        logits_BTV: (B, T, V) logits; any leading shape is accepted. Entries may be -inf.
        support_BTK: (B, T, K) distinct ids, K < V; None for the full vocabulary.
        temperature: divides the logits.

    Returns:
        (B, T, K + 1) with the tail bucket last, or (B, T, V) without a support. Differentiable in the logits. Finite,
        `LEAST_LOGP` or a little less where a probability is 0.

    Raises:
        ValueError: the support is empty, as large as the vocabulary, or has an id twice.
    """
    logits_BTV = above_least(lifted(logits_BTV).clone(), temperature)
    if support_BTK is None:
        return logits_BTV.log_softmax(-1)
    check_support(support_BTK, logits_BTV.shape[-1])
    normaliser_BT1 = logits_BTV.logsumexp(-1, keepdim=True)
    tail_BT1 = logits_BTV.scatter(-1, support_BTK, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([logits_BTV.gather(-1, support_BTK), tail_BT1], dim=-1) - normaliser_BT1


def entropy(logits_BTV: Tensor, temperature: float = 1.0) -> Tensor:
    """Shannon entropy over the full vocabulary, (B, T), in nats."""
    logp_BTV = above_least(lifted(logits_BTV).clone(), temperature).log_softmax(-1)
    return -(logp_BTV.exp() * logp_BTV).sum(-1)
