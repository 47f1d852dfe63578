"""Atoms without a gradient, computed in slices with one exponential a logit, are the differentiable ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from demopsd_dist.objective import (
    SDPO,
    SLICE_TOKENS,
    LogitTransform,
    OutputHead,
    TokenSlice,
    TokenViews,
    coarsen,
    fused_loss,
    reduced,
    top_k_support,
)

V, K = 40, 5
ROWS = 2 * SLICE_TOKENS["cpu"] + 7  # the last slice is shorter


def logits_of(rows: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (3 * torch.randn(rows, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(dtype)


def with_small_tails(logits_NV: Tensor, support_NK: Tensor, below: float) -> Tensor:
    """Every third row has its tail `below` nats below the support."""
    lowered = (logits_NV - below).scatter(-1, support_NK, logits_NV.gather(-1, support_NK))
    return torch.where(torch.arange(len(logits_NV))[:, None] % 3 == 0, lowered, logits_NV)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("below", [0.0, 30.0, 60.0, 90.0, 700.0])
def test_slices_agree_with_the_differentiable_form(dtype: torch.dtype, below: float) -> None:
    support = top_k_support(logits_of(ROWS), K)
    assert support is not None
    logits = with_small_tails(logits_of(ROWS), support, below).to(dtype)
    expected = coarsen(logits.clone().requires_grad_(), support, 0.7).detach()
    atoms = coarsen(logits, support, 0.7)
    assert atoms.dtype == expected.dtype
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(atoms, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (2, 3)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    logits = torch.randn(*shape, V)
    support = torch.arange(K).expand(*shape, K)
    atoms = coarsen(logits, support)
    assert atoms.shape == (*shape, K + 1)
    torch.testing.assert_close(atoms, coarsen(logits.requires_grad_(), support))


@pytest.mark.parametrize("with_gradient", [True, False])
def test_a_support_of_other_tokens_is_refused(with_gradient: bool) -> None:
    logits = torch.randn(2, 3, V, requires_grad=with_gradient)
    with pytest.raises(ValueError, match=r"support \(3, 2, 5\) does not fit logits \(2, 3, 40\)"):
        coarsen(logits, torch.arange(K).expand(3, 2, K))


@pytest.mark.parametrize("below", [0.0, 90.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(scale=0.5, soft_cap=20.0)])
def test_slices_with_tails_of_both_kinds_have_the_gradient_of_full_logits(
    dtype: torch.dtype, below: float, transform: LogitTransform
) -> None:
    """The memory that slices share holds nothing of the slice before, also where the last is shorter."""
    random = torch.Generator().manual_seed(1)
    support = top_k_support(logits_of(ROWS), K)
    assert support is not None
    hidden = with_small_tails(logits_of(ROWS), support, below).to(dtype)
    weight, bias = torch.eye(V, dtype=dtype), torch.randn(V, generator=random, dtype=torch.float64).to(dtype)
    teacher = coarsen(logits_of(ROWS), support).to(torch.promote_types(dtype, torch.float32))

    def loss_of(part: TokenSlice) -> Tensor:
        views = TokenViews(part.student_logp_NA, None, teacher[part.tokens])
        return reduced(SDPO(), views, token_count=ROWS).loss

    def full(hidden: Tensor, bias: Tensor) -> Tensor:
        wide = transform.apply(OutputHead(weight.to(hidden.dtype), bias).logits(hidden).clone())
        atoms = coarsen(wide, support, 0.7)
        return reduced(SDPO(), TokenViews(atoms, None, teacher.to(wide.dtype)), token_count=ROWS).loss

    h, b = hidden.clone().requires_grad_(), bias.clone().requires_grad_()
    loss = fused_loss(h, OutputHead(weight, b, transform), support, loss_of, temperature=0.7)
    loss.backward()
    exact_h, exact_b = hidden.double().requires_grad_(), bias.double().requires_grad_()
    expected = full(exact_h, exact_b)
    expected.backward()
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=0)
    for found, exact in ((h.grad, exact_h.grad), (b.grad, exact_b.grad)):
        assert found is not None
        assert exact is not None
        assert (found.double() - exact).norm() <= tolerance * exact.norm()
