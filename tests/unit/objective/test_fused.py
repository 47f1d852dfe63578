"""Fused loss: the same loss and gradients as from full logits, for any slices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from demopsd_dist.objective import (
    GRPO,
    OPSD,
    SDPO,
    DemoPSD,
    Objective,
    TokenSlice,
    TokenViews,
    coarsen,
    entropy,
    fused_loss,
    reduced,
    top_k_support,
)
from tests.unit.objective.logits_forms import loss_on_support

N, H, V = 37, 8, 50


def inputs(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)  # noqa: E731
    tensors = {"hidden": draw(N, H), "weight": scale * draw(V, H), "bias": draw(V)}
    tensors |= {"reference": scale * draw(N, V), "teacher": scale * draw(N, V)}
    return {name: value.to(dtype) for name, value in tensors.items()}


def unfused(x: dict[str, Tensor], support: Tensor | None, temperature: float, method: Objective) -> Tensor:
    logits = torch.nn.functional.linear(x["hidden"], x["weight"], x["bias"])
    reference, teacher = (coarsen(x[name], support, temperature) for name in ("reference", "teacher"))
    mask = torch.ones(N, dtype=torch.bool)
    return loss_on_support(
        method,
        logits,
        support,
        mask,
        reference_logp_BTA=reference,
        teacher_logp_BTA=teacher,
        temperature=temperature,
        advantage_BT=torch.linspace(-1, 1, N, dtype=reference.dtype),
    ).loss


def fused(
    x: dict[str, Tensor], support: Tensor | None, temperature: float, slice_tokens: int, method: Objective
) -> Tensor:
    reference, teacher = (coarsen(x[name], support, temperature) for name in ("reference", "teacher"))
    advantage = torch.linspace(-1, 1, N, dtype=reference.dtype)

    def loss_of(part: TokenSlice) -> Tensor:
        tokens = part.tokens
        views = TokenViews(
            part.student_logp_NA,
            reference[tokens],
            teacher[tokens],
            advantage_BT=advantage[tokens],
            has_tail=support is not None,
        )
        return reduced(method, views, token_count=N).loss

    return fused_loss(
        x["hidden"],
        x["weight"],
        support,
        loss_of,
        bias_V=x["bias"],
        temperature=temperature,
        slice_tokens=slice_tokens,
    )


@pytest.mark.parametrize("method", [DemoPSD(), SDPO(), SDPO("forward_kl"), OPSD(0.3), GRPO(kl_coefficient=0.1)])
@pytest.mark.parametrize("top_k", [None, 1, 7, V - 1])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("slice_tokens", [1, 5, N, 1000])
def test_loss_and_gradients_are_those_of_full_logits(
    method: Objective, top_k: int | None, temperature: float, slice_tokens: int
) -> None:
    x = inputs()
    support = top_k_support(x["hidden"] @ x["weight"].T + x["bias"], top_k)
    leaves = [x[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    expected = unfused(x, support, temperature, method)
    expected_gradients = torch.autograd.grad(3 * expected, leaves)
    actual = fused(x, support, temperature, slice_tokens, method)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)
    for one, other in zip(torch.autograd.grad(3 * actual, leaves), expected_gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


def test_a_head_that_is_not_trained_costs_no_gradient() -> None:
    x = inputs()
    support = top_k_support(x["hidden"] @ x["weight"].T + x["bias"], 7)
    x["hidden"].requires_grad_()
    (expected_gradients,) = torch.autograd.grad(unfused(x, support, 1.0, DemoPSD()), x["hidden"])
    actual = fused(x, support, 1.0, 16, DemoPSD())
    saved: Any = actual.grad_fn
    assert [gradient is None for gradient in saved.saved_tensors] == [False, True, True]
    torch.testing.assert_close(torch.autograd.grad(actual, x["hidden"])[0], expected_gradients, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 40.0, 400.0])
def test_float32_is_close_and_finite_where_the_tail_underflows(scale: float) -> None:
    x = inputs(torch.float32, scale)
    support = top_k_support(x["hidden"] @ x["weight"].T + x["bias"], 7)
    leaves = [x[name].requires_grad_() for name in ("hidden", "weight")]
    expected_gradients = torch.autograd.grad(unfused(x, support, 1.0, DemoPSD()), leaves)
    actual = torch.autograd.grad(fused(x, support, 1.0, 16, DemoPSD()), leaves)
    for one, other in zip(actual, expected_gradients, strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, other, atol=1e-5 * scale, rtol=1e-3)


def test_bfloat16_gradients_are_close_to_float32() -> None:
    x = inputs(torch.bfloat16)
    x |= {name: x[name].float() for name in ("reference", "teacher")}
    support = top_k_support(x["hidden"] @ x["weight"].T + x["bias"], 7)
    leaves = [x[name].requires_grad_() for name in ("hidden", "weight")]
    half = torch.autograd.grad(fused(x, support, 1.0, 16, DemoPSD()), leaves)
    assert [gradient.dtype for gradient in half] == [torch.bfloat16] * 2
    wide = {name: value.detach().float() for name, value in x.items()}
    leaves = [wide[name].requires_grad_() for name in ("hidden", "weight")]
    full = torch.autograd.grad(unfused(wide, support, 1.0, DemoPSD()), leaves)
    for one, other in zip(half, full, strict=True):
        assert (one.float() - other).norm() < 0.02 * other.norm()


def test_a_slice_has_token_log_probabilities_and_entropy() -> None:
    x = inputs()
    logits = torch.nn.functional.linear(x["hidden"], x["weight"]) / 0.7
    ids = torch.arange(N) % V
    seen: list[tuple[Tensor, Tensor]] = []

    def loss_of(part: TokenSlice) -> Tensor:
        seen.append((part.token_logp(ids[part.tokens]), part.entropy_N))
        return part.student_logp_NA.sum() * 0.0

    fused_loss(x["hidden"], x["weight"], top_k_support(logits, 3), loss_of, temperature=0.7, slice_tokens=10)
    logp, entropies = (torch.cat(parts) for parts in zip(*seen, strict=True))
    torch.testing.assert_close(logp, logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0])
    torch.testing.assert_close(entropies, entropy(logits))


def test_no_tokens_no_loss_and_a_zero_gradient() -> None:
    x = inputs()
    hidden, weight = x["hidden"][:0].requires_grad_(), x["weight"].requires_grad_()
    loss = fused_loss(hidden, weight, torch.zeros(0, 3, dtype=torch.long), lambda part: part.student_logp_NA.sum())
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert (weight.grad == 0).all()


def test_a_support_of_another_length_is_refused() -> None:
    x = inputs()
    with pytest.raises(ValueError, match=r"support \(3, 2\) does not fit hidden states \(37, 8\)"):
        fused_loss(
            x["hidden"], x["weight"], torch.zeros(3, 2, dtype=torch.long), lambda part: part.student_logp_NA.sum()
        )
