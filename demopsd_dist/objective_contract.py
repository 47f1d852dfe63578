"""Checks of the contract that every objective keeps, for a user's own one before a run starts, and for its tests.

An objective maps the views of some tokens to a loss of each token. The learner calls it for slices of a micro-batch, so
that a token's loss may depend on nothing but this token's views; `fused.py` takes the gradient with respect to the
student's log-probabilities.
"""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demopsd_dist.objective.method import Objective, TokenLoss, TokenViews
from demopsd_dist.util.errors import kind_and_message

_TOKENS, _ATOMS = 24, 9
_SEED = 20_607
_SCALES = (1.0, 8.0, 60.0)  # of the logits: from close to uniform to all mass on one token


def contract_views(scale: float = 1.0, *, has_reference: bool = True, has_tail: bool = True) -> TokenViews:
    """Views of random tokens, float32, on which an objective can be tried.

    Args:
        scale: standard deviation of the logits.
        has_reference: False for a method without a reference.

    Returns:
        Views of 24 tokens (N, A) with 9 atoms; the student's log-probabilities require a gradient.
    """
    generator = torch.Generator().manual_seed(_SEED)

    def logp_NA() -> Tensor:
        return (torch.randn(_TOKENS, _ATOMS, generator=generator) * scale).log_softmax(-1)

    ratio_N = (torch.randn(_TOKENS, generator=generator) * 0.1).exp()
    return TokenViews(
        logp_NA().requires_grad_(),
        logp_NA() if has_reference else None,
        logp_NA(),
        importance_ratio_BT=ratio_N,
        advantage_BT=torch.randn(_TOKENS, generator=generator),
        has_tail=has_tail,
    )


def contract_fault(method: Objective, *, has_reference: bool = True, has_tail: bool = True) -> str | None:
    """The first breach of the contract that random views show; None if there is none.

    Checked: the type and shapes of the result; finite losses and gradients, for flat and for sharp distributions; some
    gradient; the same result for the same views; a token's loss that depends on no other token; and names of metrics
    with a `/`.
    """
    some_gradient = False
    for scale in _SCALES:
        views = contract_views(scale, has_reference=has_reference, has_tail=has_tail)
        try:
            result = method(views)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            return f"it raises {kind_and_message(error)} ({Path(frame.filename).name}, line {frame.lineno})"
        if fault := _shape_fault(result):
            return fault
        if not result.loss_BT.requires_grad:
            return "its loss does not depend on student_logp_BTA, so that nothing would be learned"
        (gradient_NA,) = torch.autograd.grad(result.loss_BT.sum(), views.student_logp_BTA)
        if fault := _number_fault(result, gradient_NA, scale):
            return fault
        some_gradient = some_gradient or bool((gradient_NA != 0).any())
        if fault := _locality_fault(method, views, result.loss_BT.detach()):
            return fault
    return None if some_gradient else "its gradient is 0 at every token, so that nothing would be learned"


def _shape_fault(result: Any) -> str | None:
    """A breach in the type, the shapes or the names of a result."""
    if not isinstance(result, TokenLoss):
        return f"it returns {type(result).__name__}, not a TokenLoss"
    values = {"loss_BT": result.loss_BT} | result.means | result.distributions
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.shape != (_TOKENS,):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            return f"{name} is {shape} for {_TOKENS} tokens, not one value a token ({_TOKENS},)"
    for name in (*result.means, *result.distributions):
        if "/" not in name:
            return f"its metric {name} has no section: call it for example own/{name}"
    return None


def _number_fault(result: TokenLoss, gradient_NA: Tensor, scale: float) -> str | None:
    """A loss, a metric or a gradient that is not finite."""
    for name, value in {"loss_BT": result.loss_BT, "gradient": gradient_NA, **result.means}.items():
        if not bool(torch.isfinite(value.float()).all()):
            return f"{name} is not finite for logits with a standard deviation of {scale:g}"
    return None


def _locality_fault(method: Objective, views: TokenViews, loss_N: Tensor) -> str | None:
    """A loss that differs when it is computed again, or for fewer tokens."""
    for tokens in (slice(None), slice(0, 5), slice(5, None)):
        part = method(_sliced(views, tokens)).loss_BT.detach()
        if not torch.allclose(part, loss_N[tokens], rtol=1e-4, atol=1e-6):
            if tokens == slice(None):
                return "it gives another loss when it is called again with the same views"
            return "a token's loss depends on other tokens, and the learner calls it for a slice of tokens at a time"
    return None


def _sliced(views: TokenViews, tokens: slice) -> TokenViews:
    """The views at some tokens."""

    def at(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[tokens]

    return replace(
        views,
        student_logp_BTA=views.student_logp_BTA[tokens],
        reference_logp_BTA=at(views.reference_logp_BTA),
        teacher_logp_BTA=at(views.teacher_logp_BTA),
        importance_ratio_BT=at(views.importance_ratio_BT),
        advantage_BT=at(views.advantage_BT),
    )
