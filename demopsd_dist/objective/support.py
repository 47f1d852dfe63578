"""Reduction of vocabulary-wide logits to K + 1 atoms: the student's top-k tokens and one bucket for all other tokens.

Without the tail bucket the restricted distributions do not sum to one, and their "KL" can go negative. The tail is
summed over the tokens outside the support (not computed as 1 - support mass, which cancels), so it is exact however
little mass it holds, and so is its gradient. Source: arXiv 2607.02502, appendix B.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lifted(logits: Tensor) -> Tensor:
    """Logits in float32 if they are half-precision; float32 and float64 unchanged."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


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
        logits_BTV: (B, T, V) logits; any leading shape is accepted.
        support_BTK: (B, T, K) distinct ids, K < V; None for the full vocabulary.
        temperature: divides the logits.

    Returns:
        (B, T, K + 1) with the tail bucket last, or (B, T, V) without a support. Differentiable in the logits.

    Raises:
        ValueError: the support is empty, or as large as the vocabulary.
    """
    logits_BTV = lifted(logits_BTV) / temperature
    if support_BTK is None:
        return logits_BTV.log_softmax(-1)
    if not 0 < support_BTK.shape[-1] < logits_BTV.shape[-1]:
        raise ValueError(
            f"a support of {support_BTK.shape[-1]} ids needs a larger vocabulary than {logits_BTV.shape[-1]}."
        )
    normaliser_BT1 = logits_BTV.logsumexp(-1, keepdim=True)
    tail_BT1 = logits_BTV.scatter(-1, support_BTK, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([logits_BTV.gather(-1, support_BTK), tail_BT1], dim=-1) - normaliser_BT1


def entropy(logits_BTV: Tensor, temperature: float = 1.0) -> Tensor:
    """Shannon entropy over the full vocabulary, (B, T), in nats."""
    logp_BTV = (lifted(logits_BTV) / temperature).log_softmax(-1)
    return -(logp_BTV.exp() * logp_BTV).sum(-1)
