"""Edges of the fused loss: vanishing tails, large offsets, logits of -inf, whole vocabularies, bad ids."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from demopsd_dist.objective import (
    OPSD,
    SDPO,
    DemoPSD,
    LogitTransform,
    Objective,
    OutputHead,
    TokenSlice,
    TokenViews,
    coarsen,
    demopsd_loss,
    entropy,
    fused_loss,
    mixed_logits,
    reduced,
)
from tests.unit.objective.logits_forms import loss_on_support

NEG_INF = float("-inf")
LOSSES: dict[str, Objective] = {
    "demopsd": DemoPSD(),
    "jsd": SDPO(),
    "forward": SDPO("forward_kl"),
    "reverse": SDPO("reverse_kl"),
    "opsd": OPSD(0.3),
    "opsd-clipped": OPSD(0.0, term_clip=0.05),
}
every_loss = pytest.mark.parametrize("method", LOSSES.values(), ids=LOSSES)


def fused_gradient(
    logits_NV: Tensor,
    teacher_NV: Tensor,
    support_NK: Tensor | None,
    method: Objective,
    *,
    bias_V: Tensor | None = None,
    seen: Callable[[TokenSlice], None] = lambda part: None,
) -> tuple[Tensor, Tensor]:
    """Loss and its gradient with respect to logits: hidden states are unit vectors, so that the head's rows are the
    logits."""
    hidden, weight = torch.eye(len(logits_NV), dtype=logits_NV.dtype), logits_NV.T.clone().requires_grad_()
    teacher = coarsen(teacher_NV, support_NK)

    def loss_of(part: TokenSlice) -> Tensor:
        seen(part)
        values = teacher[part.tokens]
        views = TokenViews(part.student_logp_NA, values, values, has_tail=support_NK is not None)
        return reduced(method, views, token_count=len(logits_NV)).loss

    loss = fused_loss(hidden, OutputHead(weight, bias_V), support_NK, loss_of)
    return loss.detach(), torch.autograd.grad(loss, weight)[0].T


def test_forward_kl_keeps_the_gradient_of_a_vanishing_tail() -> None:
    """The exact gradient is p - r on the support's atoms; the tail's part is shared as the student shares it."""
    logits, teacher = torch.tensor([[80.0, 0.0, 0.0]]), torch.tensor([[0.0, 2.0, 1.0]])
    _, gradient = fused_gradient(logits, teacher, torch.tensor([[0]]), SDPO("forward_kl"))
    r = teacher.softmax(-1)
    expected = torch.tensor([[1 - r[0, 0], -(1 - r[0, 0]) / 2, -(1 - r[0, 0]) / 2]])
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=0)
    assert gradient[0].tolist() == pytest.approx([0.91, -0.455, -0.455], abs=1e-3)


@every_loss
@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("offset", [64.0, 4096.0])
def test_an_offset_common_to_all_logits_costs_no_precision(method: Objective, top_k: int | None, offset: float) -> None:
    """Logits are multiples of 1/256, so that float32 holds them with the offset exactly."""
    random = torch.Generator().manual_seed(3)
    logits, teacher = (torch.randint(-1500, 1500, (8, 40), generator=random) / 256 for _ in range(2))
    support = None if top_k is None else logits.topk(top_k).indices
    loss, plain = fused_gradient(logits, teacher, support, method)
    shifted_loss, shifted = fused_gradient(logits + offset, teacher + offset, support, method)
    assert torch.equal(shifted, plain)
    assert torch.equal(shifted_loss, loss)
    assert torch.equal(coarsen(logits + offset, support), coarsen(logits, support))
    assert torch.equal(entropy(logits + offset), entropy(logits))


@every_loss
@pytest.mark.parametrize("top_k", [None, 1, 5, 36])
@pytest.mark.parametrize("masked", ["student", "teacher", "both", "all but two"])
def test_a_token_of_probability_zero_is_legal(method: Objective, top_k: int | None, masked: str) -> None:
    """Logits of -inf: loss, gradient, entropy and metrics are finite, the token has no gradient, and where student and
    teacher agree on the impossible ids, all else is as if the vocabulary lacked them."""
    random = torch.Generator().manual_seed(5)
    logits, teacher = (torch.randn(6, 40, generator=random, dtype=torch.float64) for _ in range(2))
    possible = 2 if masked == "all but two" else 36
    impossible = (
        torch.zeros(40)
        if masked == "teacher"
        else torch.cat([torch.zeros(possible), torch.full((40 - possible,), NEG_INF)])
    )
    support = None if top_k is None else (logits + impossible).topk(top_k).indices
    if masked != "student":
        teacher[:, possible:] = NEG_INF
    hidden = torch.eye(6, dtype=torch.float64, requires_grad=True)
    weight = logits.T.clone().requires_grad_()
    sent = coarsen(teacher, support)
    entropies = []

    def loss_of(part: TokenSlice) -> Tensor:
        values = sent[part.tokens]
        views = TokenViews(part.student_logp_NA, values, values, has_tail=support is not None)
        result = reduced(method, views, token_count=6)
        assert all(torch.isfinite(value) for value in result.metrics.values())
        assert torch.isfinite(part.student_logp_NA).all()
        entropies.append(part.entropy_N.detach())
        return result.loss

    loss = fused_loss(hidden, OutputHead(weight, impossible.double()), support, loss_of)
    d_hidden, d_weight = torch.autograd.grad(loss, (hidden, weight))
    assert torch.isfinite(loss)
    assert torch.isfinite(d_hidden).all()
    assert torch.isfinite(d_weight).all()
    assert (d_weight[impossible == NEG_INF] == 0).all()
    assert torch.isfinite(torch.cat(entropies)).all()
    torch.testing.assert_close(entropy(logits + impossible), torch.cat(entropies))
    if masked == "both" and top_k != 36:
        fewer = None if support is None else support
        smaller_loss, smaller = fused_gradient(logits[:, :36], teacher[:, :36], fewer, method)
        torch.testing.assert_close(loss.detach(), smaller_loss, atol=1e-9, rtol=1e-6)
        torch.testing.assert_close(d_weight.T[:, :36], smaller, atol=1e-9, rtol=1e-6)


@every_loss
@pytest.mark.parametrize("top_k", [None, 5, 10])
def test_plain_and_fused_forms_agree_on_impossible_tokens(method: Objective, top_k: int | None) -> None:
    random = torch.Generator().manual_seed(6)
    logits, teacher = (torch.randn(6, 12, generator=random, dtype=torch.float64) for _ in range(2))
    logits[:, 9:], teacher[:, 10:] = NEG_INF, NEG_INF
    support = None if top_k is None else logits.topk(top_k).indices
    leaf = logits.clone().requires_grad_()
    sent = coarsen(teacher, support)
    plain = loss_on_support(method, leaf, support, torch.ones(6), reference_logp_BTA=sent, teacher_logp_BTA=sent)
    plain.loss.backward()
    bias = torch.where(logits[0] == NEG_INF, logits[0], 0.0)
    loss, gradient = fused_gradient(logits.clamp(min=-50), teacher, support, method, bias_V=bias)
    torch.testing.assert_close(loss, plain.loss.detach(), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(gradient, leaf.grad, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_logit_that_is_no_number_stays_visible(value: float) -> None:
    for bad in (value, NEG_INF if value != value else value):
        logits = torch.zeros(1, 5)
        logits[0] = NEG_INF
        logits[0, 0] = value
        assert coarsen(logits, torch.tensor([[1]])).isnan().any(), bad
        assert entropy(logits).isnan()
    assert entropy(torch.full((1, 5), NEG_INF)).isnan()


def test_finfo_min_divided_by_a_temperature_is_minus_infinity_and_legal() -> None:
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    logits[:, 7:] = torch.finfo(torch.float32).min
    loss = demopsd_loss(
        logits.requires_grad_(), logits.detach(), logits.detach().flip(0), torch.ones(3), temperature=0.7
    )
    loss.loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(loss.loss)


def test_a_mixture_of_logits_with_impossible_tokens_is_a_distribution() -> None:
    one, other = torch.tensor([[1.0, 2.0, NEG_INF, NEG_INF]]), torch.tensor([[3.0, 1.0, 0.5, NEG_INF]])
    mixture = coarsen(mixed_logits(one, other, 0.25), None).exp()
    expected = torch.tensor([[1.5, 1.75]]).softmax(-1)
    torch.testing.assert_close(mixture, torch.cat([expected, torch.zeros(1, 2)], dim=-1))
    for rate, logits in ((0.0, one), (1.0, other)):
        torch.testing.assert_close(coarsen(mixed_logits(one, other, rate), None).exp(), logits.softmax(-1))
    first, second = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).unbind()
    assert torch.equal(mixed_logits(first, second, 0.3), torch.lerp(first, second, 0.3))


def test_the_floor_of_a_whole_vocabulary_does_not_add_up() -> None:
    """Student, reference and teacher are equal and steep: most of 151,936 tokens lie below the floor."""
    logits = torch.linspace(0, -60, 151_936, dtype=torch.float64)[None]
    loss = demopsd_loss(logits, logits, logits, torch.ones(1), top_k=None)
    assert 0 <= loss.loss.item() < 1.1e-6
    assert loss.disagreement_BT.max() < 1e-20
    small = demopsd_loss(logits, logits, logits, torch.ones(1), top_k=100)
    assert 0 <= small.loss.item() < 1.1e-6


def test_the_floor_of_101_atoms_is_the_setting() -> None:
    logp = torch.full((1, 101), -80.0, dtype=torch.float64)
    logp[0, 0] = 0.0
    target = DemoPSD(floor=1e-6).gated_target(logp, logp).teacher_BTA
    assert target[0, 1].item() == pytest.approx(math.log(1e-6), abs=1e-3)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 1, 2, 3]], "a support of 4 ids needs a vocabulary larger than itself, and has one of 4"),
        ([[0, 1, 2, 3, 0]], "a support of 5 ids needs a vocabulary larger"),
        ([[]], "a support of 0 ids"),
        ([[0, 1], [2, 2]], r"position \[1\]: id 2 is there twice"),
        ([[0, 1], [-1, 2]], r"position \[1\]: id -1 is not in the vocabulary of 4"),
        ([[0, 4], [1, 2]], r"position \[0\]: id 4 is not in the vocabulary of 4"),
    ],
)
def test_bad_support_ids_are_refused_in_both_forms(ids: list[list[int]], message: str) -> None:
    support = torch.tensor(ids, dtype=torch.long)
    logits = torch.zeros(len(ids), 4)
    with pytest.raises(ValueError, match=message):
        coarsen(logits, support)
    with pytest.raises(ValueError, match=message):
        fused_loss(logits, OutputHead(torch.zeros(4, 4)), support, lambda part: part.student_logp_NA.sum())


def test_a_soft_cap_makes_impossible_tokens_possible_and_stays_finite() -> None:
    """A cap after the mask turns -inf into the lowest capped logit, as the model itself would."""
    transform = LogitTransform(2.0, 30.0)
    assert transform.apply(torch.tensor([NEG_INF, 0.0])).tolist() == [-30.0, 0.0]
    assert transform.derivative(torch.tensor([-30.0])).tolist() == [0.0]  # type: ignore[union-attr]
