"""Records of a sampled token: the few most likely tokens (candidates) at its position, and the target distribution of
the method there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from demopsd_dist.objective.method import Objective, TokenViews


@torch.no_grad()
def candidate_indices(logps_NA: Sequence[Tensor], count: int, has_tail: bool) -> Tensor:
    """Indices of the tokens that are most likely under any of the given distributions, (N, C), most likely first.

    They index the atoms: the tokens of the support, then the tail bucket.

    Args:
        logps_NA: log-probabilities of the same atoms, (N, A) each.
        count: number of candidates wanted; C is smaller where the atoms hold fewer tokens.
        has_tail: the last atom is the tail bucket, which is no token.
    """
    likeliest_NA = torch.stack([logp_NA.detach() for logp_NA in logps_NA]).amax(0)
    if has_tail:
        likeliest_NA = likeliest_NA[:, :-1]
    return likeliest_NA.topk(min(count, likeliest_NA.shape[-1])).indices


@torch.no_grad()
def target_of(method: Objective, views: TokenViews) -> Tensor | None:
    """Log-probabilities of the method's target for the student, (B, T, A); None for a method without a teacher, and for
    a user's own that has no `target`.

    Without a reference in `views`, the student's own values stand in for it.
    """
    target = getattr(method, "target", None)
    if target is None or views.teacher_logp_BTA is None:
        return None
    reference_BTA = views.reference_logp_BTA
    if reference_BTA is None:
        reference_BTA = views.student_logp_BTA.detach()
    if views.alpha_BT is not None:
        return target(reference_BTA, views.teacher_logp_BTA, views.alpha_BT)
    return target(reference_BTA, views.teacher_logp_BTA)
