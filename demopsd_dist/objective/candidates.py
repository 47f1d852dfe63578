"""Candidate tokens of a sample's record: the likeliest few at each position, and the target's values there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from demopsd_dist.objective.demopsd import DemoPSD
from demopsd_dist.objective.method import Objective, TokenViews
from demopsd_dist.objective.opsd import OPSD
from demopsd_dist.objective.sdpo import SDPO


@torch.no_grad()
def candidates(views: Sequence[Tensor], count: int, has_tail: bool) -> Tensor:
    """Atom indices of the tokens that are likeliest in any of the views, (N, C), the likeliest first.

    Args:
        views: log-probabilities of the same atoms, (N, A) each.
        count: upper bound of C, as is the number of tokens among the atoms.
        has_tail: the last atom is the tail bucket, which is no token.
    """
    likeliest_NA = torch.stack([view.detach() for view in views]).amax(0)
    if has_tail:
        likeliest_NA = likeliest_NA[:, :-1]
    return likeliest_NA.topk(min(count, likeliest_NA.shape[-1])).indices


@torch.no_grad()
def target_of(method: Objective, views: TokenViews) -> Tensor | None:
    """Log-probabilities of the method's target for the student, (B, T, A); None for a method without a teacher."""
    if not isinstance(method, DemoPSD | OPSD | SDPO) or views.teacher_logp_BTA is None:
        return None
    reference_BTA = views.reference_logp_BTA
    if reference_BTA is None:
        reference_BTA = views.student_logp_BTA.detach()
    return method.target(reference_BTA, views.teacher_logp_BTA)
