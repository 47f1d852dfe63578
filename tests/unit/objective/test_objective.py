"""DemoPSD loss: equal to a float64 reference, a true divergence, and independent of how a batch is split."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from demopsd_dist.objective import (
    DemoPSD,
    barycenter,
    coarsen,
    demopsd_loss,
    disagreement,
    floored,
    generalised_kl,
    tanh_gate,
    top_k_support,
)
from tests.unit.objective.logits_forms import loss_on_support
from tests.unit.objective.reference_losses import demopsd_token

B, T, V = 2, 3, 17
SETTINGS: dict[str, Any] = {"alpha_max": 0.15, "gate_sensitivity": 50.0, "floor": 1e-8}


def logits(seed: int, scale: float = 3.0, shape: tuple[int, ...] = (B, T, V)) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def three(seed: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return logits(3 * seed, scale), logits(3 * seed + 1, scale), logits(3 * seed + 2, scale)


def ones() -> torch.Tensor:
    return torch.ones(B, T, dtype=torch.bool)


@pytest.mark.parametrize("top_k", [None, 1, 5, V - 1, V, 100])
@pytest.mark.parametrize("scale", [0.1, 3.0, 8.0])
def test_equals_the_float64_reference(top_k: int | None, scale: float) -> None:
    student, reference, teacher = three(7, scale)
    result = demopsd_loss(student, reference, teacher, ones(), top_k=top_k, **SETTINGS)
    for b in range(B):
        for t in range(T):
            loss, alpha, d, _ = demopsd_token(
                *(x[b, t].numpy() for x in (student, reference, teacher)),
                top_k=top_k,
                alpha_max=0.15,
                kappa=50.0,
                floor=1e-8,
            )
            assert result.loss_BT[b, t].item() == pytest.approx(loss, abs=1e-10, rel=1e-9)
            assert result.alpha_BT[b, t].item() == pytest.approx(alpha, abs=1e-10)
            assert result.disagreement_BT[b, t].item() == pytest.approx(d, abs=1e-10)
    assert result.loss.item() == pytest.approx(result.loss_BT.mean().item(), rel=1e-12)


def test_golden_numbers() -> None:
    """Two tokens worked out by hand: r = (.5, .5), s = (.9, .1), p = (.7, .3), alpha held by kappa."""
    p, s, r = (torch.tensor([[x]], dtype=torch.float64).log() for x in ([0.7, 0.3], [0.9, 0.1], [0.5, 0.5]))
    result = demopsd_loss(p, s, r, torch.ones(1, 1), top_k=None, alpha_max=0.5, gate_sensitivity=10.0)
    m = (0.7, 0.3)
    d = 0.5 * sum(x * math.log(x / y) for x, y in zip((0.9, 0.1), m, strict=True)) + 0.5 * sum(
        0.5 * math.log(0.5 / y) for y in m
    )
    alpha = 0.5 * math.tanh(5 * d)
    weights = [0.5 ** (1 - alpha) * x**alpha for x in (0.9, 0.1)]
    q = [w / sum(weights) for w in weights]
    assert result.disagreement_BT.item() == pytest.approx(d, abs=1e-12)
    assert result.loss.item() == pytest.approx(0.7 * math.log(0.7 / q[0]) + 0.3 * math.log(0.3 / q[1]), abs=1e-12)


@pytest.mark.parametrize("top_k", [None, 6])
def test_gradient_is_that_of_the_closed_form(top_k: int | None) -> None:
    """d KL(p|q) / dz_v = p_v (log(P_b / Q_b) - loss), b the atom of v -- tail tokens move together."""
    student, reference, teacher = three(11)
    student.requires_grad_()
    result = demopsd_loss(student, reference, teacher, ones(), top_k=top_k, **SETTINGS)
    result.loss_BT.sum().backward()
    for b in range(B):
        for t in range(T):
            z = student[b, t].detach().numpy()
            loss, _, _, q = demopsd_token(
                z,
                reference[b, t].numpy(),
                teacher[b, t].numpy(),
                top_k=top_k,
                alpha_max=0.15,
                kappa=50.0,
                floor=1e-8,
            )
            p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            support = np.argsort(-z)[:top_k] if top_k else np.arange(V)
            log_ratio = np.full(V, np.nan)
            log_ratio[support] = np.log(p[support]) - np.log(q[: len(support)])
            outside = np.setdiff1d(np.arange(V), support)
            if len(outside):
                log_ratio[outside] = np.log(p[outside].sum()) - np.log(q[-1])
            assert student.grad is not None
            np.testing.assert_allclose(student.grad[b, t].numpy(), p * (log_ratio - loss), atol=1e-10)


def test_gradcheck() -> None:
    _, reference, teacher = three(5)
    student = logits(5).requires_grad_()
    support = top_k_support(student.detach(), 5)  # held fixed: finite differences must not change it

    def loss(z: torch.Tensor) -> torch.Tensor:
        values: Any = {"reference_logp_BTA": coarsen(reference, support), "teacher_logp_BTA": coarsen(teacher, support)}
        return loss_on_support(DemoPSD(**SETTINGS), z, support, ones(), **values).loss

    assert torch.autograd.gradcheck(loss, (student,))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.01, 1.0, 5.0, 40.0]), alpha=st.floats(0, 1))
def test_loss_identity_and_minimum(seed: int, scale: float, alpha: float) -> None:
    """KL(p|q) = (1 - a) KL(p|r) + a KL(p|s) + log Z; the target minimises the mixture, whose least value is -log Z."""
    p, s, r = (floored(x.log_softmax(-1), 1e-8) for x in three(seed, scale))
    alpha_BT = torch.full((B, T), alpha, dtype=torch.float64)
    q = barycenter(s, r, alpha_BT)
    log_z = ((1 - alpha) * r + alpha * s).logsumexp(-1)
    mixture = (1 - alpha) * generalised_kl(p, r) + alpha * generalised_kl(p, s)
    torch.testing.assert_close(generalised_kl(p, q), mixture + log_z, atol=1e-10, rtol=1e-10)
    at_target = (1 - alpha) * generalised_kl(q, r) + alpha * generalised_kl(q, s)
    torch.testing.assert_close(at_target, -log_z, atol=1e-10, rtol=1e-10)
    assert (mixture >= at_target - 1e-10).all()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-6, 0.1, 3.0, 40.0]), top_k=st.sampled_from([None, 1, 4]))
def test_bounds_hold_in_float32(seed: int, scale: float, top_k: int | None) -> None:
    """0 <= d <= ln 2, 0 <= alpha <= alpha_max, 0 <= loss <= log 1/floor + (K + 1) floor; everything finite."""
    student, reference, teacher = (x.float() for x in three(seed, scale))
    result = demopsd_loss(student, reference, teacher, ones(), top_k=top_k, **SETTINGS)
    assert ((result.disagreement_BT >= 0) & (result.disagreement_BT <= math.log(2) + 1e-7)).all()
    assert ((result.alpha_BT >= 0) & (result.alpha_BT <= 0.15 + 1e-7)).all()
    assert ((result.loss_BT >= 0) & (result.loss_BT <= math.log(1e8) + 1e-4)).all()
    exact = demopsd_loss(*three(seed, scale), ones(), top_k=top_k, **SETTINGS)
    torch.testing.assert_close(result.loss_BT.double(), exact.loss_BT, atol=1e-5, rtol=1e-4)


def test_equal_teacher_and_reference_close_the_gate() -> None:
    student, reference, _ = three(1)
    result = demopsd_loss(student, reference, reference, ones(), **SETTINGS)
    assert result.disagreement_BT.max() < 1e-30  # the square of a rounding error
    assert result.alpha_BT.max() < 1e-28
    torch.testing.assert_close(
        result.loss_BT, generalised_kl(student.log_softmax(-1), floored(reference.log_softmax(-1), 1e-8))
    )


def test_gate_is_the_paper_formula_and_monotone() -> None:
    d = torch.linspace(0, math.log(2), 101, dtype=torch.float64)
    alpha = tanh_gate(d, 0.15, 50.0)
    torch.testing.assert_close(alpha, (torch.sigmoid(50.0 * d) - 0.5) * 2 * 0.15, atol=1e-15, rtol=0)
    assert alpha[0] == 0
    assert (alpha.diff() >= 0).all()


def test_disagreement_is_symmetric_and_saturates_at_ln2() -> None:
    s, r = torch.tensor([[0.0, -60.0]]).log_softmax(-1), torch.tensor([[-60.0, 0.0]]).log_softmax(-1)
    assert disagreement(s, r).item() == pytest.approx(math.log(2), abs=1e-6)
    _, s, r = (x.log_softmax(-1) for x in three(2))
    torch.testing.assert_close(disagreement(s, r), disagreement(r, s))


def test_coarse_atoms_sum_to_one_and_coarsening_lowers_disagreement() -> None:
    for seed in range(20):
        student, reference, teacher = three(seed)
        support = top_k_support(student, 4)
        s, r = coarsen(reference, support), coarsen(teacher, support)
        torch.testing.assert_close(s.exp().sum(-1), torch.ones(B, T, dtype=torch.float64))
        full = disagreement(reference.log_softmax(-1), teacher.log_softmax(-1))
        assert (disagreement(s, r) <= full + 1e-12).all()


def test_tail_is_exact_where_one_minus_the_rest_cancels() -> None:
    values = torch.zeros(1, 1, 4)
    values[..., 0] = 60.0
    tail = coarsen(values, torch.tensor([[[0]]]))[..., -1]
    assert tail.item() == pytest.approx(math.log(3) - 60.0, abs=1e-4)


@pytest.mark.parametrize("parts", [[2], [1, 1], [3, 5], [1, 2, 3, 2]])
def test_loss_and_gradient_do_not_depend_on_the_split(parts: list[int]) -> None:
    """Shards with the global token count: losses, metrics and gradients add up to the whole batch's."""
    rows = sum(parts)
    shape = (rows, T, V)
    student, reference, teacher = logits(1, shape=shape), logits(2, shape=shape), logits(3, shape=shape)
    mask = torch.rand(rows, T, generator=torch.Generator().manual_seed(0)) < 0.7
    student.requires_grad_()
    full = demopsd_loss(student, reference, teacher, mask, top_k=5, **SETTINGS)
    (expected,) = torch.autograd.grad(full.loss, student)
    count, total, metrics, start = float(mask.sum()), 0.0, dict.fromkeys(full.metrics, 0.0), 0
    for size in parts:
        cut = slice(start, start + size)
        part: Any = demopsd_loss(
            student[cut], reference[cut], teacher[cut], mask[cut], top_k=5, token_count=count, **SETTINGS
        )
        part.loss.backward()
        total += part.loss.item()
        metrics = {name: metrics[name] + float(value) for name, value in part.metrics.items()}
        start += size
    assert total == pytest.approx(full.loss.item(), rel=1e-12)
    torch.testing.assert_close(student.grad, expected, atol=1e-14, rtol=1e-12)
    for name, value in full.metrics.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-9), name


def test_masked_tokens_have_no_gradient_and_an_empty_mask_no_loss() -> None:
    student, reference, teacher = three(4)
    student.requires_grad_()
    mask = ones()
    mask[0, 1] = False
    demopsd_loss(student, reference, teacher, mask, **SETTINGS).loss.backward()
    assert student.grad is not None
    assert (student.grad[0, 1] == 0).all()
    assert (student.grad[0, 0] != 0).any()
    nothing = demopsd_loss(student, reference, teacher, torch.zeros(B, T), **SETTINGS)
    assert nothing.loss.item() == 0


def test_importance_ratio_weighs_clips_and_carries_no_gradient() -> None:
    student, reference, teacher = three(6)
    plain = demopsd_loss(student, reference, teacher, ones(), **SETTINGS)
    ratio = torch.full((B, T), 0.5, dtype=torch.float64, requires_grad=True)
    student.requires_grad_()
    weighed = demopsd_loss(student, reference, teacher, ones(), importance_ratio_BT=ratio, **SETTINGS)
    torch.testing.assert_close(weighed.loss_BT, 0.5 * plain.loss_BT)
    weighed.loss.backward()
    assert ratio.grad is None
    clipped = demopsd_loss(student, reference, teacher, ones(), importance_ratio_BT=9 * ones(), **SETTINGS)
    torch.testing.assert_close(clipped.loss_BT, 2.0 * plain.loss_BT)


def test_temperature_divides_all_three() -> None:
    student, reference, teacher = three(8)
    cold = demopsd_loss(student, reference, teacher, ones(), temperature=0.5, **SETTINGS)
    doubled = demopsd_loss(2 * student, 2 * reference, 2 * teacher, ones(), **SETTINGS)
    torch.testing.assert_close(cold.loss_BT, doubled.loss_BT)


def test_half_precision_logits_are_lifted() -> None:
    student, reference, teacher = (x.bfloat16() for x in three(9))
    result = demopsd_loss(student, reference, teacher, ones(), **SETTINGS)
    assert result.loss_BT.dtype == torch.float32
    exact = demopsd_loss(student.double(), reference.double(), teacher.double(), ones(), **SETTINGS)
    torch.testing.assert_close(result.loss_BT.double(), exact.loss_BT, atol=1e-5, rtol=1e-4)


def test_values_on_the_support_give_the_same_number() -> None:
    """Loss from the float32 values that a teacher worker sends, against the loss from three logits tensors."""
    student, reference, teacher = (x.float() for x in three(10))
    support = top_k_support(student, 5)
    sent_s, sent_r = (torch.from_numpy(coarsen(x, support).numpy().copy()) for x in (reference, teacher))
    sent: Any = {"reference_logp_BTA": sent_s, "teacher_logp_BTA": sent_r}
    there = loss_on_support(DemoPSD(**SETTINGS), student, support, ones(), **sent)
    here = demopsd_loss(student, reference, teacher, ones(), top_k=5, **SETTINGS)
    torch.testing.assert_close(there.loss, here.loss, atol=1e-6, rtol=0)


def test_wrong_shapes_are_refused() -> None:
    student, reference, teacher = three(0)
    with pytest.raises(ValueError, match=r"must have one shape \(B, T, V\)"):
        demopsd_loss(student, reference[:1], teacher, ones())
    with pytest.raises(ValueError, match="mask"):
        demopsd_loss(student, reference, teacher, ones()[:, :1])
    with pytest.raises(ValueError, match="K \\+ 1"):
        loss_on_support(DemoPSD(), student, top_k_support(student, 3), ones(), teacher_logp_BTA=teacher)
    with pytest.raises(ValueError, match="top_k=0"):
        top_k_support(student, 0)
