"""The mixed loss: both terms by hand, their gradients, routing, and the support with the sampled token first."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from demopsd_dist.config.method_settings import MixedConfig, Routing
from demopsd_dist.objective import GRPO, SDPO, DemoPSD, Mixed, TokenViews, atom_entropy, gated, with_gated
from workers.forward import sampled_first

N, A = 7, 6


def views(policy: float = 0.5, distillation: float = 0.5) -> TokenViews:
    random = torch.Generator().manual_seed(3)
    logp = [torch.randn(N, A, generator=random, dtype=torch.float64).log_softmax(-1) for _ in range(3)]
    return TokenViews(
        logp[0].requires_grad_(),
        logp[1],
        logp[2],
        advantage_BT=torch.randn(N, generator=random, dtype=torch.float64),
        policy_weight_BT=torch.full((N,), policy, dtype=torch.float64),
        distillation_weight_BT=torch.full((N,), distillation, dtype=torch.float64),
    )


def gradient(method: Mixed | GRPO | SDPO | DemoPSD, x: TokenViews) -> torch.Tensor:
    (found,) = torch.autograd.grad(method(x).loss_BT.sum(), x.student_logp_BTA)
    return found


@pytest.mark.parametrize("inner", [SDPO("reverse_kl"), DemoPSD(alpha_max=0.5)])
@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0), (0.3, 0.7)])
def test_it_is_the_weighted_sum_of_its_terms(inner: SDPO | DemoPSD, a: float, b: float) -> None:
    x, policy = views(a, b), GRPO()
    mixed = Mixed(policy, inner)
    expected = a * policy(x).loss_BT + b * inner(x).loss_BT
    torch.testing.assert_close(mixed(x).loss_BT, expected, atol=1e-14, rtol=0)
    terms = a * gradient(policy, x) + b * gradient(inner, x)
    torch.testing.assert_close(gradient(mixed, x), terms, atol=1e-14, rtol=0)
    assert bool((gradient(policy, x)[:, 1:] == 0).all()), "the policy gradient is that of the sampled token, index 0"


def test_an_unsure_teacher_counts_less() -> None:
    x, inner = views(0.0, 1.0), SDPO("reverse_kl")
    assert x.teacher_logp_BTA is not None
    expected = (-atom_entropy(x.teacher_logp_BTA)).exp() * inner(x).loss_BT
    torch.testing.assert_close(Mixed(GRPO(), inner, entropy_weighting=True)(x).loss_BT, expected, atol=1e-14, rtol=0)


def test_metrics_of_the_distillation_count_nothing_where_there_is_none() -> None:
    result = Mixed(GRPO(), DemoPSD())(views(1.0, 0.0))
    assert not result.means["mixed/distilled_fraction"].any()
    assert not result.distributions["demopsd/alpha"].any()
    assert not any(value.any() for name, value in result.means.items() if name.startswith("leakage/"))
    assert result.means["grpo/advantage_abs_mean"].all()


def test_the_gate_of_a_mixed_loss_can_be_changed() -> None:
    mixed = Mixed(GRPO(), DemoPSD(alpha_max=0.1))
    inner = gated(mixed)
    assert inner is not None
    changed = with_gated(mixed, DemoPSD(alpha_max=0.4))
    assert isinstance(changed, Mixed)
    assert changed.distillation == DemoPSD(alpha_max=0.4)
    assert gated(Mixed(GRPO(), SDPO())) is None
    assert gated(GRPO()) is None


def test_the_sampled_token_comes_first_in_the_support() -> None:
    ids = np.array([[5, 3, 9], [5, 3, 9], [1, 2, 4]], np.int32)
    found = sampled_first(ids, np.array([9, 7, 1], np.int32))
    assert found.tolist() == [[9, 5, 3], [7, 5, 3], [1, 2, 4]]
    assert found.dtype == np.int32
    assert sampled_first(ids[:, :1], np.array([5, 8, 1], np.int32)).tolist() == [[5], [8], [1]]


def test_defaults_mix_in_halves_without_routing() -> None:
    assert MixedConfig() == MixedConfig(weight=0.5, routing=Routing.none)
