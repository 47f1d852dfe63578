"""Provable properties of the barycenter, over random and adversarial distributions; and one that does not hold.

s reference, r teacher, q target with weight alpha on s; gamma = 1 - alpha; Delta = log r - log s. In float64 to 1e-10
and in float32 to 1e-5, relative to the size of what is compared.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demopsd_dist.objective import (
    SDPO,
    barycenter,
    coarsen,
    demopsd_loss,
    disagreement,
    floored,
    generalised_kl,
    top_k_support,
)
from tests.unit.objective.logits_forms import loss_from_logits

V = 12
EPS = {torch.float64: 1e-10, torch.float32: 1e-5}
both = pytest.mark.parametrize("kind", EPS, ids=["float64", "float32"])
seeds = st.integers(0, 100_000)
scales = st.sampled_from([1e-3, 0.3, 1.0, 4.0, 15.0])
alphas = st.floats(0.0, 1.0)
proven = settings(deadline=None, max_examples=80)


def draw(seed: int, scale: float, kind: torch.dtype = torch.float64, rows: int = 1) -> Tensor:
    """Log-probabilities (rows, V); a few tokens far likelier than the rest."""
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, V, generator=random, dtype=torch.float64)
    logits[:, : 1 + seed % 3] += scale * 2
    return floored(logits.log_softmax(-1).to(kind), 1e-8)


def at_most(one: Tensor, other: Tensor | float, kind: torch.dtype) -> bool:
    """Whether one <= other, up to rounding."""
    limit = torch.as_tensor(other)
    return bool((one <= limit + EPS[kind] * (1.0 + limit.abs())).all())


def close(one: Tensor, other: Tensor, kind: torch.dtype) -> None:
    torch.testing.assert_close(one, other, atol=EPS[kind], rtol=EPS[kind] * 10)


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


@both
@proven
@given(seed=seeds, scale=scales, alpha=alphas)
def test_mixing_logits_is_mixing_probabilities(kind: torch.dtype, seed: int, scale: float, alpha: float) -> None:
    s, r = draw(seed, scale, kind), draw(seed + 1, scale, kind)
    weights = r.exp() ** (1 - alpha) * s.exp() ** alpha
    close(mix(s, r, alpha).exp(), weights / weights.sum(-1, keepdim=True), kind)


@both
@proven
@given(seed=seeds, scale=scales, alpha=alphas)
def test_target_leaks_no_more_than_the_teacher(kind: torch.dtype, seed: int, scale: float, alpha: float) -> None:
    """alpha (KL(r|s) - KL(q|s)) >= (1 - alpha) KL(q|r), token by token."""
    s, r = draw(seed, scale, kind), draw(seed + 1, scale, kind)
    q = mix(s, r, alpha)
    assert at_most(generalised_kl(q, s), generalised_kl(r, s), kind)
    gap = generalised_kl(r, s) - generalised_kl(q, s)
    assert at_most((1 - alpha) * generalised_kl(q, r), alpha * gap, kind)


@both
@proven
@given(seed=seeds, scale=scales, alpha=alphas)
def test_leak_is_bounded_by_the_span(kind: torch.dtype, seed: int, scale: float, alpha: float) -> None:
    s, r = draw(seed, scale, kind), draw(seed + 1, scale, kind)
    q = mix(s, r, alpha)
    assert at_most(generalised_kl(q, s), (1 - alpha) ** 2 * span(r - s) ** 2 / 8, kind)
    total_variation = 0.5 * (q.exp() - r.exp()).abs().sum(-1)
    assert at_most(total_variation, torch.tanh(alpha * span(r - s) / 4), kind)


@both
@proven
@given(seed=seeds, scale=scales, alpha=alphas)
def test_hilbert_distances_shrink_exactly(kind: torch.dtype, seed: int, scale: float, alpha: float) -> None:
    """h(P, Q) = span(log P / Q): h(q_i, q_j) = (1 - alpha) h(r_i, r_j); TV(P, Q) <= tanh(h / 4)."""
    s, r = draw(seed, scale, kind), draw(seed + 1, scale, kind, rows=2)
    q = mix(s, r, alpha)
    close(span(q[0] - q[1]), (1 - alpha) * span(r[0] - r[1]), kind)
    close(span(q - s), (1 - alpha) * span(r - s), kind)
    total_variation = 0.5 * (r[0].exp() - r[1].exp()).abs().sum(-1)
    assert at_most(total_variation, torch.tanh(span(r[0] - r[1]) / 4), kind)


@both
@proven
@given(seed=seeds, scale=scales, alpha=alphas)
def test_theorem_1_in_its_exact_centred_form(kind: torch.dtype, seed: int, scale: float, alpha: float) -> None:
    """Var_w(log q - log s) = (1 - alpha)^2 Var_w(Delta) for any weights w; the uncentred norm is shifted by log Z."""
    s, r, w = (draw(seed + i, scale, kind) for i in range(3))
    q = mix(s, r, alpha)
    close(variance(w, q - s), (1 - alpha) ** 2 * variance(w, r - s), kind)


@both
@proven
@given(seed=seeds, scale=scales, contexts=st.integers(2, 6))
def test_information_over_contexts_is_bounded(kind: torch.dtype, seed: int, scale: float, contexts: int) -> None:
    """I_q <= mean KL(q_i|s) <= mean KL(r_i|s), also with an alpha of each context's own; I_q <= ln M."""
    s, r = draw(seed, scale, kind), draw(seed + 1, scale, kind, rows=contexts)
    alpha = torch.rand(contexts, generator=torch.Generator().manual_seed(seed), dtype=kind)
    q = mix(s, r, alpha)
    bound = generalised_kl(q, s.expand_as(q)).mean()
    assert at_most(information(q), bound, kind)
    assert at_most(bound, generalised_kl(r, s.expand_as(r)).mean(), kind)
    assert at_most(information(q), math.log(contexts), kind)
    assert at_most(information(q), ((1 - alpha) ** 2 * span(r - s) ** 2).mean() / 8, kind)
    mean = q.logsumexp(0, keepdim=True) - math.log(contexts)
    close(bound, information(q) + generalised_kl(mean, s)[0], kind)
    one_alpha = mix(s, r, 0.15)
    distances = span(r[:, None] - r[None]) ** 2
    assert at_most(information(one_alpha), 0.85**2 / 8 * distances.mean(), kind)


@both
@proven
@given(seed=seeds, scale=scales, contexts=st.integers(2, 6))
def test_loss_that_no_student_can_remove(kind: torch.dtype, seed: int, scale: float, contexts: int) -> None:
    """Forward: mean KL(q_i|p) = KL(mean q|p) + I. Reverse, this loss: mean KL(p|q_i) = KL(p|geo) + G, not I."""
    p, q = draw(seed, scale, kind), draw(seed + 1, scale, kind, rows=contexts)
    mean = q.logsumexp(0, keepdim=True) - math.log(contexts)
    forward = generalised_kl(q, p.expand_as(q)).mean()
    close(forward, generalised_kl(mean, p)[0] + information(q), kind)
    logs = q.mean(0, keepdim=True)
    log_sum = logs.logsumexp(-1)
    reverse = generalised_kl(p.expand_as(q), q).mean()
    close(reverse, (generalised_kl(p, logs - log_sum) - log_sum)[0], kind)
    assert at_most(log_sum, 0.0, kind)


@pytest.mark.parametrize("seed", range(5))
def test_small_deviations_shrink_information_by_the_square(seed: int) -> None:
    s = draw(seed, 1.0)
    r = (s + 1e-3 * draw(seed + 1, 1.0, rows=4)).log_softmax(-1)
    assert information(mix(s, r, 0.15)) / information(r) == pytest.approx(0.85**2, rel=1e-2)


def test_the_target_may_hold_more_information_than_the_teacher() -> None:
    """I_q <= I_r fails: mixing towards s moves mass onto the tokens in which the contexts differ."""
    tiny = 1e-9
    r = torch.tensor([[0.98, 0.02 - tiny, tiny], [0.98, tiny, 0.02 - tiny]], dtype=torch.float64).log()
    s = torch.tensor([[2e-4, 0.4999, 0.4999]], dtype=torch.float64).log()
    assert information(r) == pytest.approx(0.0139, abs=2e-4)
    assert information(mix(s, r, 0.15)) == pytest.approx(0.0731, abs=2e-3)


@both
@proven
@given(seed=seeds, scale=st.sampled_from([0.1, 1.0, 3.0]), power=st.floats(0.05, 3.0))
def test_theorem_2_where_its_assumption_holds(kind: torch.dtype, seed: int, scale: float, power: float) -> None:
    """Delta non-decreasing in log s: H(s) >= H(q) >= H(r), the gap growing with alpha."""
    s = draw(seed, scale, kind)
    r = ((1 + power) * s).log_softmax(-1)
    entropies = torch.stack([entropy_of(mix(s, r, alpha)) for alpha in (0.0, 0.05, 0.15, 0.5, 1.0)])
    assert at_most(entropies[:-1], entropies[1:], kind)
    close(entropies[0], entropy_of(r), kind)
    close(entropies[-1], entropy_of(s), kind)


def test_theorem_2_fails_without_its_assumption() -> None:
    """Counterexamples: a target with less entropy than the teacher, and one with more than both ends."""
    s = torch.tensor([[4.0, 0.0, 0.0]], dtype=torch.float64).log_softmax(-1)
    flat = torch.zeros(1, 3, dtype=torch.float64).log_softmax(-1)
    assert entropy_of(mix(s, flat, 0.15)).item() == pytest.approx(1.0548, abs=1e-4)
    assert entropy_of(flat).item() == pytest.approx(1.0986, abs=1e-4)
    other = torch.tensor([[0.0, 2.0, 2.0]], dtype=torch.float64).log_softmax(-1)
    assert entropy_of(mix(s, other, 0.15)).item() == pytest.approx(1.004, abs=1e-3)
    assert entropy_of(other).item() == pytest.approx(0.885, abs=1e-3)


@both
@proven
@given(seed=seeds, scale=scales, alpha=alphas)
def test_entropy_of_the_target_is_bounded(kind: torch.dtype, seed: int, scale: float, alpha: float) -> None:
    """H(q) >= H_inf(q) >= (1 - alpha) H_inf(r) + alpha H_inf(s) + log Z, without any assumption; and with
    T = TV(q, r), |H(q) - H(r)| <= T ln(V - 1) + h_b(T), h_b the binary entropy."""
    s, r = draw(seed, scale, kind), draw(seed + 1, scale, kind)
    q = mix(s, r, alpha)
    log_z = ((1 - alpha) * r + alpha * s).logsumexp(-1)
    bound = -(1 - alpha) * r.amax(-1) - alpha * s.amax(-1) + log_z
    assert at_most(-q.amax(-1), entropy_of(q), kind)
    assert at_most(bound, -q.amax(-1), kind)
    t = 0.5 * (q.exp() - r.exp()).abs().sum(-1)
    binary = torch.special.entr(t) + torch.special.entr(1 - t)
    assert at_most((entropy_of(q) - entropy_of(r)).abs(), t * math.log(V - 1) + binary, kind)


@both
@proven
@given(seed=seeds, scale=scales, alpha=alphas)
def test_coarsening_raises_the_normaliser_and_lowers_the_disagreement(
    kind: torch.dtype, seed: int, scale: float, alpha: float
) -> None:
    """Z <= Z_coarse <= 1, apart by at most the tail's part; the target on the support is the same up to a factor."""
    s, r = draw(seed, scale, kind), draw(seed + 1, scale, kind)
    ids = top_k_support(draw(seed + 2, scale, kind), 4)
    assert ids is not None
    coarse_s, coarse_r = coarsen(s, ids), coarsen(r, ids)
    full = ((1 - alpha) * r + alpha * s).logsumexp(-1)
    coarse = ((1 - alpha) * coarse_r + alpha * coarse_s).logsumexp(-1)
    assert at_most(full, coarse, kind)
    assert at_most(coarse, 0.0, kind)
    tail = (1 - alpha) * coarse_r[..., -1].exp() + alpha * coarse_s[..., -1].exp()
    assert at_most(coarse.exp() - full.exp(), tail, kind)
    assert at_most(disagreement(coarse_s, coarse_r), disagreement(s, r), kind)
    on_support = mix(s, r, alpha).gather(-1, ids) + full[..., None]
    close(mix(coarse_s, coarse_r, alpha)[..., :-1] + coarse[..., None], on_support, kind)


@both
@proven
@given(seed=seeds, scale=scales, top_k=st.sampled_from([None, 4]))
def test_with_a_live_reference_the_gradient_is_sdpo_scaled(
    kind: torch.dtype, seed: int, scale: float, top_k: int | None
) -> None:
    """s = stopgrad p: dL/dz = (1 - alpha) d KL(p|r)/dz, pointwise; with an EMA reference alpha d KL(p|s)/dz comes on
    top, which the paper's equation 13 leaves out."""
    logits = draw(seed, scale, kind)[None].clone().requires_grad_()
    reference, teacher = draw(seed + 1, scale, kind)[None], draw(seed + 2, scale, kind)[None]
    mask = torch.ones(1, 1)

    def gradient_of(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, logits)[0]

    def fit(to: Tensor) -> Tensor:
        return gradient_of(loss_from_logits(SDPO("reverse_kl"), logits, mask, teacher_logits_BTV=to, top_k=top_k).loss)

    live = demopsd_loss(logits, logits.detach(), teacher, mask, top_k=top_k, floor=1e-30)
    close(gradient_of(live.loss), (1 - live.alpha_BT[..., None]) * fit(teacher), kind)
    ema = demopsd_loss(logits, reference, teacher, mask, top_k=top_k, floor=1e-30)
    alpha = ema.alpha_BT[..., None]
    close(gradient_of(ema.loss), (1 - alpha) * fit(teacher) + alpha * fit(reference), kind)


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
    torch.testing.assert_close(one.loss, other.loss, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("alpha", [0.15, 0.6])
def test_the_gate_slows_and_does_not_move_the_fixed_point(alpha: float) -> None:
    """Fixed point: r for every alpha < 1 with a reference that follows the student; q with a frozen one."""
    s, r = draw(3, 1.0), draw(4, 1.0)
    p = s
    for n in range(1, 40):
        p = mix(p, r, alpha)
        torch.testing.assert_close(span(p - r), alpha**n * span(s - r), atol=1e-9, rtol=1e-9)
    assert generalised_kl(mix(s, r, alpha), r).item() > 1e-3


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.9, 0.85), (0.2, 1.0)])
def test_several_contexts_pull_by_their_weights(weights: tuple[float, float]) -> None:
    """Minimum of (1 - alpha_1) KL(p|r_1) + (1 - alpha_2) KL(p|r_2): log p = sum w_i log r_i + c."""
    r = draw(6, 1.0, rows=2)
    w = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    logits = (w[:, None] * r).sum(0).requires_grad_()
    loss = (w * generalised_kl(logits.log_softmax(-1).expand_as(r), r)).sum()
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-12
