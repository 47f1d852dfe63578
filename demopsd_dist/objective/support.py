"""Reduction of vocabulary-wide logits to K + 1 atoms: the student's top-k tokens and one bucket for all other tokens.

Without the tail bucket the restricted distributions do not sum to one, and their "KL" can go negative. The tail is
summed over the tokens outside the support (not computed as 1 - support mass, which cancels), so it is exact however
little mass it holds, and so is its gradient. Source: arXiv 2607.02502, appendix B.

The row's largest logit is subtracted before anything else, so that an offset common to all logits costs no precision.
A logit of -inf, as models give to ids that must not be sampled, is a token of probability 0: its log-probability is the
finite number `LEAST_LOGP`, and it has no gradient. NaN, +inf and a row of -inf alone stay NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

# Tokens whose logits are worked on at a time, by device: a CPU's caches are small, a GPU needs large products.
SLICE_TOKENS = {"cpu": 128, "cuda": 1024}
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


class AtomLogp(NamedTuple):
    """Log-probabilities of the atoms of N rows, and what they were computed from."""

    logp_NA: Tensor
    """Log-probabilities of the support's tokens, then of the tail."""
    logits_NA: Tensor
    """Logits of the support's tokens, then the logsumexp of the tail's."""
    normaliser_N1: Tensor
    """logsumexp of the logits."""
    small_N: Tensor
    """Indices of rows whose tail is so small that its exponentials lose digits."""


def atom_logp(logits_NV: Tensor, ids_NK: Tensor, exp_NV: Tensor) -> AtomLogp:
    """Log-probabilities of the atoms, with one exponential of each logit. Without a gradient.

    The tail is the sum of its own exponentials; where these are near the smallest number of their type, of its
    exponentials after its own largest logit was subtracted.

    Args:
        logits_NV: as `above_least` returns them: the largest of each row is 0.
        ids_NK: distinct ids of the support, K < V.
        exp_NV: memory for the exponentials of the logits, which it has afterwards.
    """
    torch.exp(logits_NV, out=exp_NV)
    normaliser_N1 = exp_NV.sum(-1, keepdim=True).log_()
    support_NK = exp_NV.gather(-1, ids_NK)
    tail_mass_N1 = exp_NV.scatter_(-1, ids_NK, 0.0).sum(-1, keepdim=True)
    exp_NV.scatter_(-1, ids_NK, support_NK)
    limits = torch.finfo(logits_NV.dtype)
    small_N = (tail_mass_N1[:, 0] < limits.tiny / limits.eps**2).nonzero()[:, 0]
    tail_N1 = tail_mass_N1.log_()
    if len(small_N):
        tail_N1[small_N] = tail_logits(logits_NV, ids_NK, small_N).logsumexp(-1, keepdim=True)
    logits_NA = torch.cat([logits_NV.gather(-1, ids_NK), tail_N1], dim=-1)
    return AtomLogp(logits_NA - normaliser_N1, logits_NA, normaliser_N1, small_N)


def tail_logits(logits_NV: Tensor, ids_NK: Tensor, row_N: Tensor) -> Tensor:
    """Logits of some rows, with -inf at the ids of the support."""
    return logits_NV[row_N].scatter_(-1, ids_NK[row_N], float("-inf"))


def size_on(device: torch.device, sizes: Mapping[str, int]) -> int:
    """Size for a device of `sizes` by its type; other accelerators have a GPU's."""
    return sizes.get(device.type, sizes["cuda"])


def row_slices(rows: int, size: int) -> Iterator[slice]:
    """Slices of `size` rows; the last may be shorter."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


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
        ValueError: the support is empty, as large as the vocabulary, or has an id twice, or has other leading
            dimensions than the logits.
    """
    if support_BTK is None:
        return above_least(lifted(logits_BTV).clone(), temperature).log_softmax(-1)
    if support_BTK.shape[:-1] != logits_BTV.shape[:-1]:
        raise ValueError(f"support {tuple(support_BTK.shape)} does not fit logits {tuple(logits_BTV.shape)}.")
    check_support(support_BTK, logits_BTV.shape[-1])
    if not (torch.is_grad_enabled() and logits_BTV.requires_grad):
        *leading, top_k = support_BTK.shape
        rows_NV, ids_NK = logits_BTV.reshape(-1, logits_BTV.shape[-1]), support_BTK.reshape(-1, top_k)
        return _coarsen_slices(rows_NV, ids_NK, temperature).view(*leading, top_k + 1)
    logits_BTV = above_least(lifted(logits_BTV).clone(), temperature)
    normaliser_BT1 = logits_BTV.logsumexp(-1, keepdim=True)
    tail_BT1 = logits_BTV.scatter(-1, support_BTK, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([logits_BTV.gather(-1, support_BTK), tail_BT1], dim=-1) - normaliser_BT1


def _coarsen_slices(logits_NV: Tensor, support_NK: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of the atoms, (N, K + 1), a slice of rows at a time in the same memory: on a CPU new memory of
    this size costs more than the arithmetic on it."""
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    out_NA = logits_NV.new_empty(len(logits_NV), support_NK.shape[-1] + 1, dtype=wide)
    size = min(size_on(logits_NV.device, SLICE_TOKENS), len(logits_NV))
    memory = logits_NV.new_empty(2, size, logits_NV.shape[-1], dtype=wide)
    for rows in row_slices(len(logits_NV), max(size, 1)):
        part_NV = logits_NV[rows]
        shifted_NV, exp_NV = memory[:, : len(part_NV)]
        shifted_NV = above_least(shifted_NV.copy_(part_NV), temperature)
        out_NA[rows] = atom_logp(shifted_NV, support_NK[rows], exp_NV).logp_NA
    return out_NA


def entropy(logits_BTV: Tensor, temperature: float = 1.0) -> Tensor:
    """Shannon entropy over the full vocabulary, (B, T), in nats."""
    logp_BTV = above_least(lifted(logits_BTV).clone(), temperature).log_softmax(-1)
    return -(logp_BTV.exp() * logp_BTV).sum(-1)
