"""Every method: its two forms, its float64 reference, its gradient in closed form, and extreme inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demopsd_dist.objective import (
    GRPO,
    OPSD,
    SDPO,
    DemoPSD,
    Mixed,
    Objective,
    coarsen,
    token_weight,
    top_k_support,
)
from tests.unit.objective.logits_forms import loss_from_logits, loss_on_support
from tests.unit.objective.reference_losses import atoms, kl, softmax

B, T, V = 4, 5, 17
METHODS: dict[str, Objective] = {
    "demopsd": DemoPSD(),
    "demopsd-constant": DemoPSD(gate="constant", alpha_max=0.05),
    "demopsd-threshold": DemoPSD(gate="threshold"),
    "sdpo-jsd": SDPO(),
    "sdpo-forward": SDPO("forward_kl"),
    "sdpo-reverse": SDPO("reverse_kl"),
    "opsd": OPSD(),
    "opsd-clipped": OPSD(beta=0.7, term_clip=0.05),
    "grpo": GRPO(),
    "grpo-kl": GRPO(clip_high=0.28, kl_coefficient=0.04),
    "grpo-engine": GRPO(clipped_ratio="engine"),
    "mixed-sdpo": Mixed(GRPO(), SDPO("reverse_kl")),
    "mixed-demopsd": Mixed(GRPO(), DemoPSD(), entropy_weighting=True),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
distilling = pytest.mark.parametrize("method", list(METHODS.values())[:8], ids=list(METHODS)[:8])


def logits(seed: int, scale: float = 3.0, shape: tuple[int, ...] = (B, T, V)) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample(seed: int = 0, scale: float = 3.0, rows: int = B) -> dict[str, Any]:
    """Inputs of all methods."""
    random = torch.Generator().manual_seed(seed)
    names = ("student_logits_BTV", "reference_logits_BTV", "teacher_logits_BTV")
    tensors = {name: logits(3 * seed + i, scale, (rows, T, V)) for i, name in enumerate(names)}
    return tensors | {
        "mask_BT": torch.rand(rows, T, generator=random) < 0.7,
        "importance_ratio_BT": (0.4 * torch.randn(rows, T, generator=random, dtype=torch.float64)).exp(),
        "advantage_BT": torch.randn(rows, 1, generator=random, dtype=torch.float64).expand(rows, T),
        "policy_weight_BT": torch.rand(rows, 1, generator=random, dtype=torch.float64).expand(rows, T),
        "distillation_weight_BT": torch.rand(rows, 1, generator=random, dtype=torch.float64).expand(rows, T),
    }


def rows_of(x: dict[str, Any], rows: slice) -> dict[str, Any]:
    return {name: value[rows] for name, value in x.items()}


@every_method
@pytest.mark.parametrize("top_k", [None, 1, 5, V - 1])
def test_both_forms_give_the_same_number(method: Objective, top_k: int | None) -> None:
    """Loss from full logits, against the loss from a teacher's float32 values on the support."""
    x = {name: value.float() if value.is_floating_point() else value for name, value in sample().items()}
    here = loss_from_logits(method, **x, top_k=top_k)
    ids = top_k_support(x["student_logits_BTV"], top_k)
    sent: Any = {
        f"{name}_logp_BTA": torch.from_numpy(coarsen(x.pop(f"{name}_logits_BTV"), ids).numpy().copy())
        for name in ("reference", "teacher")
    }
    there = loss_on_support(method, support_BTK=ids, **sent, **x)
    torch.testing.assert_close(there.loss, here.loss, atol=1e-6, rtol=0)
    assert there.metrics.keys() == here.metrics.keys()


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd", "reverse_kl"])
@pytest.mark.parametrize("top_k", [None, 5])
def test_sdpo_and_its_gradient_against_float64_numpy(divergence: Any, top_k: int | None) -> None:
    student, teacher = logits(1).requires_grad_(), logits(2)
    mask = torch.ones(B, T)
    result = loss_from_logits(SDPO(divergence), student, mask, teacher_logits_BTV=teacher, top_k=top_k)
    result.loss_BT.sum().backward()
    assert student.grad is not None
    for b in range(B):
        for t in range(T):
            z = student[b, t].detach().numpy()
            support = None if top_k is None else np.argsort(-z, kind="stable")[:top_k]
            p, r = (atoms(softmax(x), support) for x in (z, teacher[b, t].numpy()))
            m = (p + r) / 2
            loss, log_ratio = {
                "forward_kl": (kl(r, p), -r / p),
                "jsd": (0.5 * kl(p, m) + 0.5 * kl(r, m), 0.5 * np.log(p / m)),
                "reverse_kl": (kl(p, r), np.log(p / r)),
            }[divergence]
            assert result.loss_BT[b, t].item() == pytest.approx(loss, abs=1e-10)
            distribution = np.empty(V)  # every token has the value of its atom
            distribution[np.arange(V) if support is None else support] = log_ratio[
                : len(log_ratio) if top_k is None else -1
            ]
            if support is not None:
                distribution[np.setdiff1d(np.arange(V), support)] = log_ratio[-1]
            p_V = softmax(z)
            expected = p_V * (distribution - (p_V * distribution).sum())
            np.testing.assert_allclose(student.grad[b, t].numpy(), expected, atol=1e-10)


def test_opsd_is_jsd_over_the_whole_vocabulary_and_its_terms_can_be_bounded() -> None:
    x = sample(3)
    jsd = loss_from_logits(SDPO(), **x, top_k=None)
    torch.testing.assert_close(loss_from_logits(OPSD(), **x, top_k=None).loss, jsd.loss)
    for beta, sdpo in ((0.0, SDPO("forward_kl")), (1.0, SDPO("reverse_kl"))):
        expected = loss_from_logits(sdpo, **x, top_k=None)
        torch.testing.assert_close(loss_from_logits(OPSD(beta), **x, top_k=None).loss, expected.loss)
    clipped = loss_from_logits(OPSD(term_clip=0.01), **x | {"importance_ratio_BT": None}, top_k=None)
    assert (clipped.loss_BT <= 0.01 * V + 1e-12).all()
    assert 0 < clipped.metrics["opsd/clipped_fraction"] <= 1


def test_demopsd_at_its_ends_is_sdpo_and_a_live_reference_is_the_student() -> None:
    x = sample(4)
    shut = loss_from_logits(DemoPSD(alpha_max=0.0, floor=1e-30), **x, top_k=5)
    torch.testing.assert_close(shut.loss, loss_from_logits(SDPO("reverse_kl"), **x, top_k=5).loss)
    own = x | {"reference_logits_BTV": x["student_logits_BTV"]}
    given_itself = loss_from_logits(DemoPSD(), **own, top_k=5)
    without = loss_from_logits(DemoPSD(), **x | {"reference_logits_BTV": None}, top_k=5)
    torch.testing.assert_close(without.loss, given_itself.loss, atol=1e-12, rtol=1e-12)


def test_constant_and_threshold_gates() -> None:
    x = sample(5, scale=0.5)
    constant = loss_from_logits(DemoPSD(gate="constant", alpha_max=0.07), **x)
    assert (constant.distributions["demopsd/alpha"] == 0.07).all()
    half = DemoPSD(gate="threshold", gate_threshold_nats=0.05).alpha(torch.tensor([0.0, 0.05, 0.6]))
    torch.testing.assert_close(half, torch.tensor([0.15 * 0.0758582, 0.075, 0.15]), atol=1e-5, rtol=1e-5)


def grpo_token(p: float, ratio: float, advantage: float, initial: float, x: GRPO) -> float:
    clipped = min(max(ratio, 1 - x.clip_low), 1 + x.clip_high)
    gain = min(ratio * advantage, clipped * advantage)
    if advantage < 0:
        gain = max(gain, x.dual_clip * advantage)
    log_ratio = np.log(initial) - np.log(p)
    return x.kl_coefficient * (np.exp(log_ratio) - log_ratio - 1) - gain


@pytest.mark.parametrize("ratio", [0.3, 0.95, 1.0, 1.25, 2.0, 7.0])
@pytest.mark.parametrize("advantage", [-2.0, -0.5, 0.0, 1.5])
def test_grpo_and_its_gradient(ratio: float, advantage: float) -> None:
    method = GRPO(clip_low=0.2, clip_high=0.28, dual_clip=3.0, kl_coefficient=0.04, clipped_ratio="engine")
    student, initial = logits(1, shape=(1, 1, V)).requires_grad_(), logits(2, shape=(1, 1, V))
    y = 3
    result = loss_from_logits(
        method,
        student,
        torch.ones(1, 1),
        reference_logits_BTV=initial,
        support_BTK=torch.tensor([[[y]]]),
        importance_ratio_BT=torch.tensor([[ratio]], dtype=torch.float64),
        advantage_BT=torch.tensor([[advantage]], dtype=torch.float64),
    )
    p, q = softmax(student.detach().numpy()[0, 0]), softmax(initial.numpy()[0, 0])
    assert result.loss.item() == pytest.approx(grpo_token(p[y], ratio, advantage, q[y], method), abs=1e-10)
    result.loss.backward()
    flows = (advantage > 0 and ratio <= 1.28) or (advantage < 0 and 0.8 <= ratio <= 3.0)
    slope = 0.04 * (1 - q[y] / p[y]) - (ratio * advantage if flows else 0.0)
    expected = slope * ((np.arange(V) == y) - p)
    assert student.grad is not None
    np.testing.assert_allclose(student.grad[0, 0].numpy(), expected, atol=1e-10)


@every_method
@pytest.mark.parametrize("parts", [[4], [2, 2], [1, 1, 1, 1], [1, 3]])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "max_length"])
def test_loss_gradient_and_metrics_do_not_depend_on_the_split(
    method: Objective, parts: list[int], aggregation: Any
) -> None:
    """Shards of any size, and packed (all tokens in a row, none masked) instead of padded."""
    x = sample(6)
    student = x["student_logits_BTV"].requires_grad_()
    lengths = x["mask_BT"].sum(-1)
    counts = {"token_count": float(lengths.sum()), "sequence_count": B, "max_tokens": 11}
    weight_BT = token_weight(aggregation, lengths, **counts)[:, None].expand(B, T)
    full = loss_from_logits(method, **x, weight_BT=weight_BT, top_k=5)
    (expected,) = torch.autograd.grad(full.loss, student)
    total, metrics, start = torch.zeros(()), dict.fromkeys(full.metrics, 0.0), 0
    for size in parts:
        rows = slice(start, start + size)
        part = loss_from_logits(
            method, **rows_of(x, rows), weight_BT=weight_BT[rows], token_count=counts["token_count"], top_k=5
        )
        part.loss.backward()
        total = total + part.loss.detach()
        metrics = {name: metrics[name] + float(value) for name, value in part.metrics.items()}
        start += size
    torch.testing.assert_close(total, full.loss.detach(), atol=1e-12, rtol=1e-12, check_dtype=False)
    torch.testing.assert_close(student.grad, expected, atol=1e-14, rtol=1e-12)
    assert metrics == pytest.approx({name: float(value) for name, value in full.metrics.items()}, rel=1e-9)
    mask = x.pop("mask_BT")
    flat = {name: value[mask] for name, value in x.items()}
    packed = loss_from_logits(method, mask_BT=torch.ones(int(mask.sum())), weight_BT=weight_BT[mask], **flat, top_k=5)
    torch.testing.assert_close(packed.loss, full.loss, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(packed.loss, student)[0], expected, atol=1e-14, rtol=1e-12)


def test_aggregations_by_hand() -> None:
    lengths = torch.tensor([2, 8])
    weights = {
        name: token_weight(name, lengths, token_count=10, sequence_count=2, max_tokens=16).tolist()
        for name in ("token_mean", "sequence_mean", "max_length")
    }
    assert weights == {"token_mean": [0.1, 0.1], "sequence_mean": [0.25, 0.0625], "max_length": [1 / 32, 1 / 32]}
    with pytest.raises(ValueError, match="aggregation='mean'"):
        token_weight("mean", lengths, token_count=10, sequence_count=2, max_tokens=16)  # type: ignore[arg-type]


@every_method
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-3, 1.0, 40.0]),
    top_k=st.sampled_from([None, 1, V, 3 * V]),
    kind=st.sampled_from([torch.float32, torch.bfloat16]),
    mask=st.sampled_from(["some", "none", "one sample", "one token"]),
)
def test_no_input_makes_it_infinite(
    method: Objective, seed: int, scale: float, top_k: int | None, kind: torch.dtype, mask: str
) -> None:
    """Logits of 40 N(0, 1), half precision, K beyond V, masked samples with NaN in them, and an empty mask."""
    x = sample(seed, scale)
    x |= {name: value.to(kind) for name, value in x.items() if name.endswith("logits_BTV")}
    mask_BT = x["mask_BT"]
    mask_BT &= {
        "some": torch.ones(B, T),
        "none": torch.zeros(B, T),
        "one sample": torch.eye(B, T)[:, :1],
        "one token": torch.eye(B, T) * torch.eye(B)[:, :1],
    }[mask].bool()
    for name in ("reference_logits_BTV", "teacher_logits_BTV"):
        x[name][~mask_BT] = float("nan")
    x["importance_ratio_BT"][~mask_BT] = float("nan")
    student = x["student_logits_BTV"].requires_grad_()
    result = loss_from_logits(method, **x, top_k=top_k)
    result.loss.backward()
    assert student.grad is not None
    assert torch.isfinite(result.loss)
    assert torch.isfinite(student.grad).all()
    assert (student.grad[~mask_BT] == 0).all()
    assert all(torch.isfinite(value) for value in result.metrics.values())
    if not isinstance(method, GRPO | Mixed):
        assert (result.loss_BT >= 0).all()
    if not mask_BT.any():
        assert result.loss == 0


@distilling
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.1, 3.0, 10.0]))
def test_float32_is_float64_to_1e_5(method: Objective, seed: int, scale: float) -> None:
    x = sample(seed, scale)
    narrow = {name: value.float() if value.is_floating_point() else value for name, value in x.items()}
    one, other = (loss_from_logits(method, **values, top_k=5) for values in (narrow, x))
    torch.testing.assert_close(one.loss_BT.double(), other.loss_BT, atol=1e-5, rtol=1e-5)
