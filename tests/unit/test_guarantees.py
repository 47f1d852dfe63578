"""What is provable about the barycenter, over random and adversarial distributions; and one thing that is not true.

s reference, r teacher, q target with weight alpha on s; gamma = 1 - alpha; Delta = log r - log s. Float64 throughout.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demopsd_dist.objective import (
    barycenter,
    coarsen,
    demopsd_loss,
    disagreement,
    floored,
    generalised_kl,
    top_k_support,
)

V, EPS = 12, 1e-10
seeds = st.integers(0, 100_000)
scales = st.sampled_from([1e-3, 0.3, 1.0, 4.0, 15.0])
alphas = st.floats(0.0, 1.0)
proven = settings(deadline=None, max_examples=80)


def draw(seed: int, scale: float, rows: int = 1) -> Tensor:
    """Log-probabilities (rows, V); a few tokens far likelier than the rest."""
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, V, generator=random, dtype=torch.float64)
    logits[:, : 1 + seed % 3] += scale * 2
    return floored(logits.log_softmax(-1), 1e-8)


def mix(s: Tensor, r: Tensor, alpha: float | Tensor) -> Tensor:
    alpha_N = alpha if isinstance(alpha, Tensor) else torch.full(r.shape[:-1], alpha, dtype=r.dtype)
    return barycenter(s.expand_as(r), r, alpha_N)


def span(x: Tensor) -> Tensor:
    return x.amax(-1) - x.amin(-1)


def entropy_of(logp: Tensor) -> Tensor:
    return -(logp.exp() * logp).sum(-1)


def variance(weights_logp: Tensor, x: Tensor) -> Tensor:
    w = weights_logp.exp()
    return (w * (x - (w * x).sum(-1, keepdim=True)) ** 2).sum(-1)


def information(contexts: Tensor) -> Tensor:
    """Mutual information of token and context, uniform over the rows."""
    mean = contexts.logsumexp(0, keepdim=True) - math.log(len(contexts))
    return generalised_kl(contexts, mean.expand_as(contexts)).mean()


@proven
@given(seeds, scales, alphas)
def test_mixing_logits_is_mixing_probabilities(seed: int, scale: float, alpha: float) -> None:
    s, r = draw(seed, scale), draw(seed + 1, scale)
    weights = r.exp() ** (1 - alpha) * s.exp() ** alpha
    torch.testing.assert_close(mix(s, r, alpha).exp(), weights / weights.sum(-1, keepdim=True), atol=1e-12, rtol=1e-10)


@proven
@given(seeds, scales, alphas)
def test_target_leaks_no_more_than_the_teacher(seed: int, scale: float, alpha: float) -> None:
    """alpha (KL(r|s) - KL(q|s)) >= (1 - alpha) KL(q|r), token by token."""
    s, r = draw(seed, scale), draw(seed + 1, scale)
    q = mix(s, r, alpha)
    gap = generalised_kl(r, s) - generalised_kl(q, s)
    assert (gap >= -EPS).all()
    assert (alpha * gap >= (1 - alpha) * generalised_kl(q, r) - EPS).all()


@proven
@given(seeds, scales, alphas)
def test_leak_is_bounded_by_the_span(seed: int, scale: float, alpha: float) -> None:
    s, r = draw(seed, scale), draw(seed + 1, scale)
    q = mix(s, r, alpha)
    assert (generalised_kl(q, s) <= (1 - alpha) ** 2 * span(r - s) ** 2 / 8 + EPS).all()
    total_variation = 0.5 * (q.exp() - r.exp()).abs().sum(-1)
    assert (total_variation <= torch.tanh(alpha * span(r - s) / 4) + EPS).all()


@proven
@given(seeds, scales, alphas)
def test_hilbert_distances_shrink_exactly(seed: int, scale: float, alpha: float) -> None:
    s, r = draw(seed, scale), draw(seed + 1, scale, rows=2)
    q = mix(s, r, alpha)
    torch.testing.assert_close(span(q[0] - q[1]), (1 - alpha) * span(r[0] - r[1]), atol=EPS, rtol=EPS)
    torch.testing.assert_close(span(q - s), (1 - alpha) * span(r - s), atol=EPS, rtol=EPS)


@proven
@given(seeds, scales, alphas)
def test_theorem_1_in_its_exact_centred_form(seed: int, scale: float, alpha: float) -> None:
    """Var_w(log q - log s) = (1 - alpha)^2 Var_w(Delta) for any weights w; the uncentred norm is shifted by log Z."""
    s, r, w = draw(seed, scale), draw(seed + 1, scale), draw(seed + 2, scale)
    q = mix(s, r, alpha)
    torch.testing.assert_close(variance(w, q - s), (1 - alpha) ** 2 * variance(w, r - s), atol=1e-9, rtol=1e-9)


@proven
@given(seeds, scales, st.integers(2, 6))
def test_information_over_contexts_is_bounded(seed: int, scale: float, contexts: int) -> None:
    """I_q <= mean KL(q_i|s) <= mean KL(r_i|s), also with an alpha of each context's own; I_q <= ln M."""
    s, r = draw(seed, scale), draw(seed + 1, scale, rows=contexts)
    alpha = torch.rand(contexts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q = mix(s, r, alpha)
    bound = generalised_kl(q, s.expand_as(q)).mean()
    assert information(q) <= bound + EPS
    assert bound <= generalised_kl(r, s.expand_as(r)).mean() + EPS
    assert information(q) <= math.log(contexts) + EPS
    assert information(q) <= ((1 - alpha) ** 2 * span(r - s) ** 2).mean() / 8 + EPS
    mean = q.logsumexp(0, keepdim=True) - math.log(contexts)
    torch.testing.assert_close(bound, information(q) + generalised_kl(mean, s)[0], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_small_deviations_shrink_information_by_the_square(seed: int) -> None:
    s = draw(seed, 1.0)
    r = (s + 1e-3 * draw(seed + 1, 1.0, rows=4)).log_softmax(-1)
    assert information(mix(s, r, 0.15)) / information(r) == pytest.approx(0.85**2, rel=1e-2)


def test_not_true_that_the_target_holds_less_information_than_the_teacher() -> None:
    """I_q <= I_r fails: mixing towards s moves mass onto the tokens in which the contexts differ."""
    tiny = 1e-9
    r = torch.tensor([[0.98, 0.02 - tiny, tiny], [0.98, tiny, 0.02 - tiny]], dtype=torch.float64).log()
    s = torch.tensor([[2e-4, 0.4999, 0.4999]], dtype=torch.float64).log()
    assert information(r) == pytest.approx(0.0139, abs=2e-4)
    assert information(mix(s, r, 0.15)) == pytest.approx(0.0731, abs=2e-3)


@proven
@given(seeds, st.sampled_from([0.1, 1.0, 3.0]), st.floats(0.05, 3.0))
def test_theorem_2_where_its_assumption_holds(seed: int, scale: float, power: float) -> None:
    """Delta non-decreasing in log s: H(s) >= H(q) >= H(r), the gap growing with alpha."""
    s = draw(seed, scale)
    r = ((1 + power) * s).log_softmax(-1)
    entropies = torch.stack([entropy_of(mix(s, r, alpha)) for alpha in (0.0, 0.05, 0.15, 0.5, 1.0)])
    assert (entropies.diff(dim=0) >= -EPS).all()
    torch.testing.assert_close(entropies[0], entropy_of(r))
    torch.testing.assert_close(entropies[-1], entropy_of(s))


def test_theorem_2_fails_without_its_assumption() -> None:
    """Both ways: a target less entropic than the teacher, and one more entropic than both ends."""
    s = torch.tensor([[4.0, 0.0, 0.0]], dtype=torch.float64).log_softmax(-1)
    flat = torch.zeros(1, 3, dtype=torch.float64).log_softmax(-1)
    assert entropy_of(mix(s, flat, 0.15)).item() == pytest.approx(1.0548, abs=1e-4)
    assert entropy_of(flat).item() == pytest.approx(1.0986, abs=1e-4)
    other = torch.tensor([[0.0, 2.0, 2.0]], dtype=torch.float64).log_softmax(-1)
    assert entropy_of(mix(s, other, 0.15)).item() == pytest.approx(1.004, abs=1e-3)
    assert entropy_of(other).item() == pytest.approx(0.885, abs=1e-3)


@proven
@given(seeds, scales, alphas)
def test_entropy_of_the_target_is_bounded_below(seed: int, scale: float, alpha: float) -> None:
    """H(q) >= H_inf(q) >= (1 - alpha) H_inf(r) + alpha H_inf(s) + log Z, without any assumption."""
    s, r = draw(seed, scale), draw(seed + 1, scale)
    q = mix(s, r, alpha)
    log_z = ((1 - alpha) * r + alpha * s).logsumexp(-1)
    bound = -(1 - alpha) * r.amax(-1) - alpha * s.amax(-1) + log_z
    assert (entropy_of(q) >= -q.amax(-1) - EPS).all()
    assert (-q.amax(-1) >= bound - EPS).all()


@proven
@given(seeds, scales, alphas)
def test_coarse_normaliser_lies_between_the_full_one_and_one(seed: int, scale: float, alpha: float) -> None:
    s, r = draw(seed, scale), draw(seed + 1, scale)
    ids = top_k_support(draw(seed + 2, scale), 4)
    coarse_s, coarse_r = coarsen(s, ids), coarsen(r, ids)
    full = ((1 - alpha) * r + alpha * s).logsumexp(-1)
    coarse = ((1 - alpha) * coarse_r + alpha * coarse_s).logsumexp(-1)
    assert (full <= coarse + EPS).all()
    assert (coarse <= EPS).all()
    assert (disagreement(coarse_s, coarse_r) <= disagreement(s, r) + EPS).all()


@proven
@given(seeds, scales, st.sampled_from([None, 4]))
def test_with_a_live_reference_the_gradient_is_sdpo_scaled(seed: int, scale: float, top_k: int | None) -> None:
    """s = stopgrad p: dL/dz = (1 - alpha) d KL(p|r)/dz, pointwise."""
    logits = draw(seed, scale)[None].clone().requires_grad_()
    teacher = draw(seed + 1, scale)[None]
    mask = torch.ones(1, 1)
    found = demopsd_loss(logits, logits.detach(), teacher, mask, top_k=top_k, floor=1e-30)
    (gradient,) = torch.autograd.grad(found.loss, logits)
    ids = top_k_support(logits.detach(), top_k)
    sdpo = generalised_kl(coarsen(logits, ids), coarsen(teacher, ids)).sum()
    (expected,) = torch.autograd.grad(sdpo, logits)
    torch.testing.assert_close(gradient, (1 - found.alpha_BT[..., None]) * expected, atol=EPS, rtol=1e-8)


@proven
@given(seeds, scales)
def test_ends_of_the_gate(seed: int, scale: float) -> None:
    """alpha_max = 0 is reverse-KL SDPO; alpha = 1 leaves the reference; equal contexts leave q = r = s."""
    p, s, r = (draw(seed + i, scale)[None] for i in range(3))
    mask = torch.ones(1, 1)
    shut = demopsd_loss(p, s, r, mask, top_k=None, alpha_max=0.0)
    torch.testing.assert_close(shut.loss_BT, generalised_kl(p, r), atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(mix(s[0], r[0], 1.0), s[0], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(mix(s[0], s[0], 0.3), s[0], atol=1e-12, rtol=1e-12)


@proven
@given(seeds, scales)
def test_the_order_of_the_vocabulary_does_not_matter(seed: int, scale: float) -> None:
    p, s, r = (draw(seed + i, scale)[None] for i in range(3))
    p = p + torch.linspace(0, 1e-6, V, dtype=p.dtype)  # no ties: which of two equal tokens is in the top k is open
    order = torch.randperm(V, generator=torch.Generator().manual_seed(seed))
    one = demopsd_loss(p, s, r, torch.ones(1, 1), top_k=4)
    other = demopsd_loss(p[..., order], s[..., order], r[..., order], torch.ones(1, 1), top_k=4)
    torch.testing.assert_close(one.loss, other.loss, atol=EPS, rtol=EPS)


@pytest.mark.parametrize("alpha", [0.15, 0.6])
def test_the_gate_slows_and_does_not_move_the_fixed_point(alpha: float) -> None:
    """With a reference that follows the student, p <- q(p) ends at r for every alpha < 1; a frozen one holds q."""
    s, r = draw(3, 1.0), draw(4, 1.0)
    p = s
    for n in range(1, 40):
        p = mix(p, r, alpha)
        torch.testing.assert_close(span(p - r), alpha**n * span(s - r), atol=1e-9, rtol=1e-9)
    assert generalised_kl(mix(s, r, alpha), r).item() > 1e-3


@proven
@given(seeds, st.sampled_from([1.0, 40.0]), st.sampled_from([None, 1, V, 3 * V]))
def test_hostile_logits_are_finite_and_not_negative(seed: int, scale: float, top_k: int | None) -> None:
    random = torch.Generator().manual_seed(seed)
    p, s, r = (scale * torch.randn(2, 1, V, generator=random) for _ in range(3))
    for kind in (torch.float32, torch.bfloat16):
        logits = p.to(kind).detach().clone().requires_grad_()
        mask = torch.tensor([[True], [False]])
        found = demopsd_loss(logits, s.to(kind), r.to(kind), mask, top_k=top_k)
        found.loss.backward()
        assert logits.grad is not None
        assert torch.isfinite(found.loss)
        assert found.loss >= 0
        assert torch.isfinite(logits.grad).all()
        assert (logits.grad[1] == 0).all()
