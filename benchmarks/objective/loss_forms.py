"""Forms of each loss that `benchmarks.objective` compares, from hidden states to gradients, and their inputs.

Tasks, each with the same numbers in all its forms:

* `demopsd`: student's top 100 and a tail; reference and teacher values are inputs, as in the cluster.
* `sdpo`: Jensen-Shannon on the student's top 100 and a tail; the teacher's head is part of the work, as in TRL.
* `jsd`: Jensen-Shannon over the whole vocabulary; the teacher's head is part of the work, as in Liger.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from demopsd_dist.objective import (
    OPSD,
    SDPO,
    SLICE_TOKENS,
    DemoPSD,
    OutputHead,
    TokenSlice,
    TokenViews,
    coarsen,
    fused_loss,
    reduced,
    top_k_support,
)

TOP_K = 100


class LossCase:
    """Inputs of one size. Everything that a form does not compute itself exists before it starts."""

    def __init__(self, tokens: int, hidden: int, vocabulary: int, device: str, dtype: torch.dtype) -> None:
        self._random = torch.Generator(device=device).manual_seed(0)
        self.tokens, self.device, self.slice_tokens = tokens, device, SLICE_TOKENS[device]
        self.hidden_NH = self._draw(tokens, hidden).to(dtype).requires_grad_()
        self.weight_VH = (self._draw(vocabulary, hidden) * 0.05).to(dtype).requires_grad_()
        self.teacher_NH = (self.hidden_NH.detach().float() + 0.3 * self._draw(tokens, hidden)).to(dtype)
        self.mask_N = torch.ones(tokens, dtype=torch.bool, device=device)

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._random, device=self.device)

    @cached_property
    @torch.no_grad()
    def sent(self) -> tuple[Tensor, Tensor, Tensor]:
        """Support ids, reference and teacher values on them."""
        slices = []
        reference_NH = (self.hidden_NH.float() + 0.1 * self._draw(*self.hidden_NH.shape)).to(self.hidden_NH.dtype)
        for start in range(0, self.tokens, self.slice_tokens):
            rows = slice(start, start + self.slice_tokens)
            logits = [linear(x[rows], self.weight_VH) for x in (self.hidden_NH, reference_NH, self.teacher_NH)]
            ids = top_k_support(logits[0], TOP_K)
            assert ids is not None
            slices.append((ids, coarsen(logits[1], ids), coarsen(logits[2], ids)))
        ids, reference, teacher = (torch.cat(values) for values in zip(*slices, strict=True))
        return ids, reference, teacher

    def teacher_logits(self, rows: slice) -> Tensor:
        """Teacher's logits of some tokens."""
        with torch.no_grad():
            return linear(self.teacher_NH[rows], self.weight_VH)


def demopsd_plain(case: LossCase) -> Tensor:
    """DemoPSD's loss from all logits at once."""
    return _demopsd_rows(case.hidden_NH, case.weight_VH, case, slice(0, case.tokens))


def demopsd_recomputed(case: LossCase) -> Tensor:
    """Loss by slices whose logits are discarded and recomputed in the backward pass."""
    total = case.hidden_NH.new_zeros((), dtype=torch.float32)
    for start in range(0, case.tokens, case.slice_tokens):
        rows = slice(start, start + case.slice_tokens)
        total = total + checkpoint(_demopsd_rows, case.hidden_NH[rows], case.weight_VH, case, rows, use_reentrant=False)
    return total


def _demopsd_rows(hidden_NH: Tensor, weight_VH: Tensor, case: LossCase, rows: slice) -> Tensor:
    ids, reference, teacher = (x[rows] for x in case.sent)
    views = TokenViews(coarsen(linear(hidden_NH, weight_VH), ids), reference, teacher)
    return reduced(DemoPSD(), views, case.mask_N[rows], token_count=case.tokens).loss


def demopsd_fused(case: LossCase) -> Tensor:
    """DemoPSD's loss in the trainer's fused form."""
    ids, reference, teacher = case.sent

    def loss_of(part: TokenSlice) -> Tensor:
        views = TokenViews(part.student_logp_NA, reference[part.tokens], teacher[part.tokens])
        return reduced(DemoPSD(), views, token_count=case.tokens).loss

    return fused_loss(case.hidden_NH, OutputHead(case.weight_VH), ids, loss_of)


def sdpo_fused(case: LossCase) -> Tensor:
    """SDPO's loss in the trainer's fused form."""
    ids = case.sent[0]

    def loss_of(part: TokenSlice) -> Tensor:
        teacher_NA = coarsen(case.teacher_logits(part.tokens), ids[part.tokens])
        return reduced(SDPO(), TokenViews(part.student_logp_NA, None, teacher_NA), token_count=case.tokens).loss

    return fused_loss(case.hidden_NH, OutputHead(case.weight_VH), ids, loss_of)


def sdpo_plain(case: LossCase) -> Tensor:
    """SDPO's loss from all logits at once."""
    student_logits_NV = linear(case.hidden_NH, case.weight_VH)
    ids = top_k_support(student_logits_NV.detach(), TOP_K)
    teacher_NA = coarsen(case.teacher_logits(slice(None)), ids)
    views = TokenViews(coarsen(student_logits_NV, ids), None, teacher_NA)
    return reduced(SDPO(), views, case.mask_N).loss


def sdpo_trl(case: LossCase) -> Tensor:
    """SDPO's loss by TRL."""
    from trl.experimental.sdpo.loss_utils import compute_topk_self_distillation_loss

    return compute_topk_self_distillation_loss(
        linear(case.hidden_NH, case.weight_VH).float(),
        case.teacher_logits(slice(None)).float(),
        distillation_topk=TOP_K,
        distillation_alpha=0.5,
        distillation_add_tail=True,
    ).mean()


def jsd_fused(case: LossCase) -> Tensor:
    """Jensen-Shannon divergence in the trainer's fused form."""

    def loss_of(part: TokenSlice) -> Tensor:
        teacher_NV = coarsen(case.teacher_logits(part.tokens), None)
        views = TokenViews(part.student_logp_NA, None, teacher_NV, has_tail=False)
        return reduced(OPSD(), views, token_count=case.tokens).loss

    return fused_loss(case.hidden_NH, OutputHead(case.weight_VH), None, loss_of)


def jsd_liger(case: LossCase) -> Tensor:
    """Jensen-Shannon divergence by Liger."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    labels = torch.zeros(case.tokens, dtype=torch.long, device=case.device)
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=False, chunk_size=case.slice_tokens
    )
    return loss(case.hidden_NH, case.weight_VH, case.teacher_NH, case.weight_VH.detach(), labels)


def importable(package: str) -> bool:
    """True if a package is installed."""
    return importlib.util.find_spec(package) is not None


Form = Callable[[LossCase], Tensor]
FORMS: dict[str, dict[str, Form]] = {
    "demopsd": {"plain": demopsd_plain, "recomputed": demopsd_recomputed, "fused": demopsd_fused},
    "sdpo": {"plain": sdpo_plain, "fused": sdpo_fused},
    "jsd": {"fused": jsd_fused},
}
if importable("trl"):
    FORMS["sdpo"]["TRL"] = sdpo_trl
if importable("liger_kernel"):
    FORMS["jsd"]["Liger"] = jsd_liger
HEAD_PRODUCTS = {"demopsd": 3, "sdpo": 4, "jsd": 4}
"""Products with the head's weight that every form needs: forward, two gradients, the teacher's forward."""
