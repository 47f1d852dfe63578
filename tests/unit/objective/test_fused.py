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
    LogitTransform,
    Objective,
    OutputHead,
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
        OutputHead(x["weight"], x["bias"]),
        support,
        loss_of,
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

    fused_loss(
        x["hidden"], OutputHead(x["weight"]), top_k_support(logits, 3), loss_of, temperature=0.7, slice_tokens=10
    )
    logp, entropies = (torch.cat(parts) for parts in zip(*seen, strict=True))
    torch.testing.assert_close(logp, logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0])
    torch.testing.assert_close(entropies, entropy(logits))


def test_no_tokens_no_loss_and_a_zero_gradient() -> None:
    x = inputs()
    hidden, weight = x["hidden"][:0].requires_grad_(), x["weight"].requires_grad_()
    loss = fused_loss(
        hidden, OutputHead(weight), torch.zeros(0, 3, dtype=torch.long), lambda part: part.student_logp_NA.sum()
    )
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert (weight.grad == 0).all()


def test_a_support_of_another_length_is_refused() -> None:
    x = inputs()
    with pytest.raises(ValueError, match=r"support \(3, 2\) does not fit hidden states \(37, 8\)"):
        fused_loss(
            x["hidden"],
            OutputHead(x["weight"]),
            torch.zeros(3, 2, dtype=torch.long),
            lambda part: part.student_logp_NA.sum(),
        )


TRANSFORMS = [LogitTransform(0.25), LogitTransform(8.0), LogitTransform(soft_cap=3.0), LogitTransform(1.7, 2.5)]


def transformed(logits: Tensor, transform: LogitTransform) -> Tensor:
    """Logits as the model's own code would have them."""
    logits = logits * transform.scale
    return logits if transform.soft_cap is None else transform.soft_cap * torch.tanh(logits / transform.soft_cap)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("top_k", [None, 7])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_logit_transform_has_the_loss_and_gradients_of_autograd(
    transform: LogitTransform, top_k: int | None, temperature: float
) -> None:
    """The temperature divides the transformed logits, as in vLLM; with a soft cap the other order differs."""
    x = inputs()
    leaves = [x[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    logits = transformed(x["hidden"] @ x["weight"].T + x["bias"], transform)
    support = top_k_support(logits.detach(), top_k)
    reference = coarsen(x["reference"], support, temperature)
    views = TokenViews(coarsen(logits, support, temperature), reference, reference.flip(0), has_tail=top_k is not None)
    expected = reduced(DemoPSD(), views, token_count=N).loss

    def loss_of(part: TokenSlice) -> Tensor:
        atoms = (reference[part.tokens], reference.flip(0)[part.tokens])
        return reduced(
            DemoPSD(), TokenViews(part.student_logp_NA, *atoms, has_tail=top_k is not None), token_count=N
        ).loss

    head = OutputHead(x["weight"], x["bias"], transform)
    actual = fused_loss(x["hidden"], head, support, loss_of, temperature=temperature, slice_tokens=5)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)
    for one, other in zip(torch.autograd.grad(actual, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_heads_logits_are_those_of_the_models_own_code(transform: LogitTransform) -> None:
    """With a gradient and without, where they are computed in place."""
    x = inputs()
    expected = transformed(x["hidden"] @ x["weight"].T, transform)
    head = OutputHead(x["weight"].requires_grad_(), transform=transform)
    torch.testing.assert_close(head.logits(x["hidden"]), expected, atol=1e-12, rtol=1e-12)
    (gradient,) = torch.autograd.grad(head.logits(x["hidden"]).square().sum(), x["weight"])
    (wanted,) = torch.autograd.grad(transformed(x["hidden"] @ x["weight"].T, transform).square().sum(), x["weight"])
    torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(head.logits(x["hidden"]), expected, atol=1e-12, rtol=1e-12)


def test_no_transform_is_the_head_bit_for_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = inputs(dtype)
        expected = torch.nn.functional.linear(x["hidden"], x["weight"], x["bias"])
        assert torch.equal(OutputHead(x["weight"], x["bias"]).logits(x["hidden"]), expected)


@pytest.mark.parametrize("values", [(0.0, None), (1.0, 0.0), (1.0, -3.0)])
def test_a_transform_that_is_none_is_refused(values: tuple[float, float | None]) -> None:
    with pytest.raises(ValueError, match="a scale is not 0, and a soft cap is positive"):
        LogitTransform(*values)
