"""Fused loss from the last hidden states and the head's weight, a slice of tokens at a time: (B, T, V) never exists.

The gradients are formed slice by slice in the forward pass, while the slice's logits are in memory; nothing is computed
twice. A loss is a function of the K + 1 atoms; autograd goes no further than those, and the step from atoms to logits
has a closed form:

    dL/dz_v = g_v - p_v sum(g)                              v in the support
    dL/dz_v = p_v / P_tail (g_tail - P_tail sum(g))         v in the tail: its tokens move together

with g = dL/d log P. The tail's share p_v / P_tail is a softmax over the tail's own logits, exact however little mass
the tail holds. A token of probability 0 (a logit of -inf) has no gradient. Before the head's weight comes the
derivative of the model's own transform of its logits (`logit_transform.py`). Not implemented: a recomputing backward,
which would save the gradient of the head and cost one more product with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from demopsd_dist.objective.logit_transform import LogitTransform, OutputHead
from demopsd_dist.objective.support import (
    LEAST_LOGP,
    SLICE_TOKENS,
    above_least,
    atom_logp,
    check_support,
    row_slices,
    size_on,
    tail_logits,
)

_ROWS_OF_A_PRODUCT = 4096  # of the head's gradient on a CPU: they stay in its caches until they are added
_FULL_VOCABULARY_TOKENS = {"cpu": 16, "cuda": 64}  # of a slice in one call of the loss, if the atoms are the vocabulary


@dataclass(frozen=True)
class TokenSlice:
    """Input of a loss: some consecutive tokens. `logits_NV` and `exp_NV` are overwritten after the loss has returned.

    `student_logp_NA` carries the gradient; the other tensors do not.
    """

    tokens: slice
    student_logp_NA: Tensor  # of the atoms, at the temperature
    logits_NV: Tensor  # in float32 or wider, divided by the temperature, minus the row's maximum
    exp_NV: Tensor  # their exponentials
    normaliser_N1: Tensor  # logsumexp of the logits

    def token_logp(self, ids_N: Tensor) -> Tensor:
        """Log-probability of one token at each position."""
        return (self.logits_NV.gather(-1, ids_N[:, None]) - self.normaliser_N1)[:, 0]

    @cached_property
    def entropy_N(self) -> Tensor:
        """Shannon entropy over the full vocabulary, (N,), nats. Computed once, at the first use within the loss."""
        product_N = (self.exp_NV * self.logits_NV).sum(-1)
        normaliser_N = self.normaliser_N1[:, 0]
        return normaliser_N - product_N / normaliser_N.exp()


LossOfSlice = Callable[[TokenSlice], Tensor]  # returns a scalar; the scalars of all slices add up


def fused_loss(
    hidden_NH: Tensor,
    head: OutputHead,
    support_NK: Tensor | None,
    loss_of: LossOfSlice,
    *,
    temperature: float = 1.0,
    slice_tokens: int | None = None,
) -> Tensor:
    """The scalar sum of `loss_of` over all slices, differentiable in hidden states, weight and bias.

    Args:
        hidden_NH: last hidden states of N tokens; N may be 0.
        head: its weight is whole (under ZeRO-3: gathered).
        support_NK: distinct ids, K < V; None for the full vocabulary.
        loss_of: called once for each slice, in order.
        temperature: divides the head's logits.
        slice_tokens: tokens in a slice; memory grows with `slice_tokens * V`, not with N. None for the device's
            `SLICE_TOKENS`.

    Raises:
        ValueError: support and hidden states have different lengths, or the support is empty, as large as the
            vocabulary, or has an id twice.
    """
    if support_NK is not None and support_NK.shape[0] != hidden_NH.shape[0]:
        raise ValueError(f"support {tuple(support_NK.shape)} does not fit hidden states {tuple(hidden_NH.shape)}.")
    if support_NK is not None:
        check_support(support_NK, head.weight_VH.shape[0])
    if slice_tokens is None:
        slice_tokens = size_on(hidden_NH.device, SLICE_TOKENS)
    return _FusedLoss.apply(
        hidden_NH, head.weight_VH, head.bias_V, head.transform, support_NK, loss_of, temperature, slice_tokens
    )


class _FusedLoss(torch.autograd.Function):
    """Loss whose forward also computes its gradients, and whose backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        transform: LogitTransform,
        support_NK: Tensor | None,
        loss_of: LossOfSlice,
        temperature: float,
        slice_tokens: int,
    ) -> Tensor:
        wide = torch.promote_types(hidden_NH.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden_NH.device)
        d_hidden_NH = torch.zeros_like(hidden_NH)
        _, with_weight, with_bias, *_ = ctx.needs_input_grad  # False if the head is not trained
        d_weight_VH = torch.zeros_like(weight_VH, dtype=wide) if with_weight else None
        d_bias_V = torch.zeros_like(bias_V, dtype=wide) if bias_V is not None and with_bias else None
        head = OutputHead(weight_VH, bias_V, transform)
        memory = _SliceMemory(min(slice_tokens, len(hidden_NH)), head, wide)
        for tokens in row_slices(len(hidden_NH), slice_tokens):
            part_NH = hidden_NH[tokens]
            logits_NV, exp_NV = memory.logits(part_NH)
            derivative = None if transform.is_identity else transform.derivative(logits_NV)
            above_least(logits_NV, temperature)
            ids_NK = None if support_NK is None else support_NK[tokens]
            loss, d_logits_NV = _loss_and_logit_gradient(logits_NV, exp_NV, ids_NK, tokens.start, loss_of)
            total += loss
            if temperature != 1.0:
                d_logits_NV.div_(temperature)
            if derivative is not None:
                d_logits_NV.mul_(derivative)
            if d_bias_V is not None:
                d_bias_V += d_logits_NV.sum(0)
            d_logits_NV = memory.narrow(d_logits_NV)
            d_hidden_NH[tokens] = d_logits_NV @ weight_VH
            if d_weight_VH is not None:
                _add_product(d_weight_VH, d_logits_NV.T, part_NH)
        ctx.save_for_backward(d_hidden_NH, d_weight_VH, d_bias_V)
        ctx.weight_dtype = weight_VH.dtype
        return total

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden_NH, d_weight_VH, d_bias_V = ctx.saved_tensors
        # In place: each is the gradient itself, and this graph is walked once.
        d_head = [None if d is None else d.mul_(d_total).to(ctx.weight_dtype) for d in (d_weight_VH, d_bias_V)]
        return d_hidden_NH.mul_(d_total), *d_head, *[None] * 5


class _SliceMemory:
    """Memory for the logits of one slice, which all slices of a loss use: on a CPU new memory of this size costs more
    than the arithmetic on it."""

    def __init__(self, rows: int, head: OutputHead, wide: torch.dtype) -> None:
        self._head, shape = head, (rows, len(head.weight_VH))
        self._wide_NV, self._exp_NV = head.weight_VH.new_empty(2, *shape, dtype=wide)
        is_narrow = head.weight_VH.dtype != wide
        self._narrow_NV = head.weight_VH.new_empty(shape) if is_narrow else self._wide_NV

    def logits(self, hidden_NH: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of a slice in float32 or wider, and memory for their exponentials."""
        rows = slice(0, len(hidden_NH))
        logits_NV = self._head.product_into(self._narrow_NV[rows], hidden_NH)
        if logits_NV.dtype != self._wide_NV.dtype:
            logits_NV = self._wide_NV[rows].copy_(logits_NV)
        return self._head.transform.apply(logits_NV), self._exp_NV[rows]

    def narrow(self, values_NV: Tensor) -> Tensor:
        """Values of a slice in the precision of the head's weight, in place of the logits."""
        if values_NV.dtype == self._narrow_NV.dtype:
            return values_NV
        return self._narrow_NV[: len(values_NV)].copy_(values_NV)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to total, in place. A GPU adds narrow products to a wide sum without rounding in between."""
    if total.dtype == left.dtype:
        torch.addmm(total, left, right, out=total)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        for rows in row_slices(len(total), _ROWS_OF_A_PRODUCT):
            total[rows] += left[rows] @ right


def _loss_and_logit_gradient(
    logits_NV: Tensor, exp_NV: Tensor, ids_NK: Tensor | None, start: int, loss_of: LossOfSlice
) -> tuple[Tensor, Tensor]:
    """Compute a slice's loss, and its gradient with respect to the logits in the memory of either argument."""
    if ids_NK is not None:
        return _on_support(logits_NV, exp_NV, ids_NK, slice(start, start + len(logits_NV)), loss_of)
    total = torch.zeros((), dtype=logits_NV.dtype, device=logits_NV.device)
    for part in row_slices(len(logits_NV), size_on(logits_NV.device, _FULL_VOCABULARY_TOKENS)):
        part_NV = logits_NV[part]
        tokens = slice(start + part.start, start + part.stop)
        torch.exp(part_NV, out=exp_NV[part])
        normaliser_N1 = exp_NV[part].sum(-1, keepdim=True).log_()
        logp_NV = part_NV - normaliser_N1
        views = TokenSlice(tokens, logp_NV.requires_grad_(), part_NV, exp_NV[part], normaliser_N1)
        loss, g_NV = _loss_and_gradient(views, loss_of)
        empty_NV = part_NV <= LEAST_LOGP
        torch.sub(g_NV, logp_NV.detach().exp_().mul_(g_NV.sum(-1, keepdim=True)), out=part_NV)
        part_NV.masked_fill_(empty_NV, 0.0)
        total += loss
    return total, logits_NV


def _on_support(
    logits_NV: Tensor, exp_NV: Tensor, ids_NK: Tensor, tokens: slice, loss_of: LossOfSlice
) -> tuple[Tensor, Tensor]:
    """Do the same where the atoms are a support and its tail, by the closed form above."""
    atoms = atom_logp(logits_NV, ids_NK, exp_NV)
    logp_NA = atoms.logp_NA
    views = TokenSlice(tokens, logp_NA.requires_grad_(), logits_NV, exp_NV, atoms.normaliser_N1)
    loss, g_NA = _loss_and_gradient(views, loss_of)
    logp_NA = logp_NA.detach()
    support_logits_NK, tail_N1 = atoms.logits_NA[:, :-1], atoms.logits_NA[:, -1:]
    # A tail of impossible tokens alone has the mass of e^LEAST_LOGP a token.
    empty_NA = torch.cat([support_logits_NK, tail_N1 - math.log(logits_NV.shape[-1])], dim=-1) <= LEAST_LOGP
    d_atoms_NA = (g_NA - logp_NA.exp() * g_NA.sum(-1, keepdim=True)).masked_fill(empty_NA, 0.0)
    # What the exponentials are at ids of the support is written over afterwards.
    small_N = atoms.small_N
    shares_N1 = d_atoms_NA[:, -1:] * (-tail_N1).exp().index_fill(0, small_N, 0.0)
    d_logits_NV = exp_NV.mul_(shares_N1)
    if len(small_N):
        tail_NV = tail_logits(logits_NV, ids_NK, small_N).sub_(tail_N1[small_N])
        d_logits_NV[small_N] = tail_NV.exp_().mul_(d_atoms_NA[small_N, -1:])
    d_logits_NV.scatter_(-1, ids_NK, d_atoms_NA[:, :-1])
    return loss, d_logits_NV


def _loss_and_gradient(part: TokenSlice, loss_of: LossOfSlice) -> tuple[Tensor, Tensor]:
    """Compute a slice's loss and its gradient with respect to the log-probabilities of the atoms."""
    with torch.enable_grad():
        loss = loss_of(part)
        (g_NA,) = torch.autograd.grad(loss, part.student_logp_NA)
    return loss.detach(), g_NA
