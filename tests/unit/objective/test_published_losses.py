"""Clipping rules of OPSD's, TRL's and verl's code, from their formulas: float64, and gradients by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from demopsd_dist.objective import GRPO, OPSD, TokenViews, reduced

N, V = 40, 12


def draw(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def opsd_as_published(student_logits: Tensor, teacher_logits: Tensor, beta: float, clip: float | None) -> Tensor:
    """Loss of each token by `generalized_jsd_loss` of siyan-zhao/OPSD: the terms of `kl_div`, bounded from above."""
    p, r = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)

    def terms(target: Tensor, of: Tensor) -> Tensor:
        return torch.nn.functional.kl_div(of, target, reduction="none", log_target=True)

    if beta in (0.0, 1.0):
        jsd = terms(r, p) if beta == 0 else terms(p, r)
    else:
        mixture = ((1 - beta) * p.exp() + beta * r.exp()).log()
        jsd = beta * terms(r, mixture) + (1 - beta) * terms(p, mixture)
    return (jsd if clip is None else jsd.clamp(max=clip)).sum(-1)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("clip", [None, 0.05, 0.5])
def test_opsd_is_the_published_loss_with_its_clip(beta: float, clip: float | None) -> None:
    student, teacher = draw(1, N, V).requires_grad_(), draw(2, N, V)
    expected = opsd_as_published(student, teacher, beta, clip)
    (gradient,) = torch.autograd.grad(expected.sum(), student)
    views = TokenViews(student.log_softmax(-1), teacher_logp_BTA=teacher.log_softmax(-1), has_tail=False)
    loss = reduced(OPSD(beta, clip), views)
    torch.testing.assert_close(loss.loss_BT, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss.loss_BT.sum(), student)[0], gradient, atol=1e-12, rtol=1e-10)


def test_a_clip_at_an_end_acts_on_terms_that_may_be_negative() -> None:
    """With every positive term clipped away, the published loss keeps the negative ones."""
    student, teacher = draw(3, N, V), draw(4, N, V)
    views = TokenViews(student.log_softmax(-1), teacher_logp_BTA=teacher.log_softmax(-1), has_tail=False)
    assert (reduced(OPSD(0.0, 1e-6), views).loss_BT < 0).all()
    assert (reduced(OPSD(0.5, 1e-6), views).loss_BT > 0).all()


def policy_loss_as_published(
    logp: Tensor, old_logp: Tensor, engine_logp: Tensor, advantage: Tensor, method: GRPO, dual_clip: float | None
) -> Tensor:
    """Loss of each token by TRL's GRPO (dual_clip None) and by verl's vanilla loss, with a truncated engine weight."""
    ratio = (logp - old_logp).exp()
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - method.clip_low, 1 + method.clip_high))
    if dual_clip is not None:
        loss = torch.where(advantage < 0, torch.minimum(loss, -advantage * dual_clip), loss)
    return loss * (old_logp - engine_logp).exp().clamp(max=method.importance_clip)


def policy_views(logp: Tensor, old_logp: Tensor | None, engine_logp: Tensor, advantage: Tensor) -> TokenViews:
    ratios: dict[str, Any] = {"importance_ratio_BT": (logp - engine_logp).exp()}
    if old_logp is not None:
        ratios["learner_ratio_BT"] = (logp - old_logp).exp()
    return TokenViews(logp[:, None], advantage_BT=advantage, **ratios)


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_grpo_is_the_published_loss_after_several_updates(dual_clip: float | None) -> None:
    """New, old and engine differ, so that clip, dual clip and truncation all act."""
    logp = (draw(1, N) - 8).requires_grad_()
    old, engine, advantage = logp.detach() + draw(2, N, scale=0.6), logp.detach() + draw(3, N), draw(4, N)
    method = GRPO(clip_high=0.28, dual_clip=dual_clip or 1e9)
    expected = policy_loss_as_published(logp, old, engine, advantage, method, dual_clip)
    (gradient,) = torch.autograd.grad(expected.sum(), logp)
    loss = reduced(method, policy_views(logp, old, engine, advantage))
    torch.testing.assert_close(loss.loss_BT, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss.loss_BT.sum(), logp)[0], gradient, atol=1e-12, rtol=1e-12)
    assert 0 < loss.metrics["grpo/clipped_fraction"] < 1
    assert loss.metrics["grpo/truncated_fraction"] == ((old - engine).exp() > 2.0).double().mean()


@pytest.mark.parametrize(("clipped_ratio", "slope"), [("learner", -1.2840254), ("engine", 0.0)])
def test_a_mismatch_of_a_quarter_nat_keeps_its_gradient_unless_the_engines_ratio_is_clipped(
    clipped_ratio: Any, slope: float
) -> None:
    logp = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    views = policy_views(logp, None, logp.detach() - 0.25, torch.ones(1))
    loss = reduced(GRPO(clipped_ratio=clipped_ratio), views)
    loss.loss.backward()
    assert logp.grad is not None
    assert logp.grad.item() == pytest.approx(slope, abs=1e-7)
    assert loss.metrics["grpo/clipped_fraction"] == (clipped_ratio == "engine")


def test_the_engines_ratio_is_truncated_and_weighs_negative_advantages_too() -> None:
    logp = torch.tensor([-1.0, -1.0], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([2.0, -2.0], dtype=torch.float64)
    loss = reduced(GRPO(), policy_views(logp, None, logp.detach() - 3.0, advantage))
    torch.testing.assert_close(loss.loss_BT, torch.tensor([-4.0, 4.0], dtype=torch.float64))
    assert loss.metrics["grpo/truncated_fraction"] == 1
    assert loss.metrics["grpo/clipped_fraction"] == 0
