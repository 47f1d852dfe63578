"""Gates beyond the paper's: fitted to a mean alpha, a KL budget of each response, a schedule."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from demopsd_dist.config import load
from demopsd_dist.methods import at_step, objective_of, scheduled_alpha_max
from demopsd_dist.objective import DemoPSD, TokenViews, disagreement, floored, reduced
from demopsd_dist.objective.barycenter import barycenter, budget_alpha, fitted_sensitivity, tanh_gate
from demopsd_dist.util.errors import ConfigError
from tests.unit.config.test_config import DEMO


def logps(count: int, seed: int, scale: float = 1.5) -> tuple[Tensor, Tensor]:
    """Reference and teacher over 7 atoms, the second near the first."""
    random = torch.Generator().manual_seed(seed)
    reference = torch.randn(count, 7, generator=random, dtype=torch.float64)
    teacher = reference + scale * torch.randn(count, 7, generator=random, dtype=torch.float64)
    return reference.log_softmax(-1), teacher.log_softmax(-1)


def mean_kl(reference: Tensor, teacher: Tensor, alpha: float) -> float:
    """Mean over the tokens of KL(target|reference), from its definition."""
    weights = teacher.exp() ** (1 - alpha) * reference.exp() ** alpha
    target = weights / weights.sum(-1, keepdim=True)
    return float((target * (target.log() - reference)).sum(-1).mean())


@pytest.mark.parametrize("mean", [0.001, 0.06, 0.14])
def test_the_fitted_gate_has_the_mean_that_was_asked_for(mean: float) -> None:
    reference, teacher = logps(4000, seed=1)
    d = disagreement(reference, teacher)
    kappa = fitted_sensitivity(d, torch.ones_like(d), 0.15, mean)
    assert float(tanh_gate(d, 0.15, kappa).mean()) == pytest.approx(mean, rel=1e-9)
    counted = fitted_sensitivity(torch.cat([d, d[:9]]), torch.cat([torch.ones_like(d), torch.zeros(9)]), 0.15, mean)
    assert counted == pytest.approx(kappa), "values without weight do not count"


def test_a_mean_that_no_sensitivity_gives_ends_at_the_end_of_the_range() -> None:
    half_zero = torch.tensor([0.0, 0.0, 0.1, 0.1])
    kappa = fitted_sensitivity(half_zero, torch.ones(4), 0.15, 0.14)
    assert kappa == pytest.approx(1e9)
    assert float(tanh_gate(half_zero, 0.15, kappa).mean()) == pytest.approx(0.075)
    assert fitted_sensitivity(torch.zeros(0), torch.zeros(0), 0.15, 0.06) == 1e-3


@pytest.mark.parametrize("budget", [1e-4, 0.004, 0.1])
def test_each_response_uses_up_its_budget_and_not_more(budget: float) -> None:
    reference, teacher = logps(60, seed=2)
    lengths = [10, 1, 29, 20]
    alpha = budget_alpha(reference, teacher, lengths, budget)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        start += length
        one = float(alpha[part][0])
        assert torch.equal(alpha[part], torch.full((length,), one, dtype=torch.float64)), "one alpha a response"
        spent = mean_kl(reference[part], teacher[part], one)
        assert spent <= budget * (1 + 1e-9)
        if one > 0:
            assert spent == pytest.approx(budget, rel=1e-4)
            assert mean_kl(reference[part], teacher[part], one - 1e-4) > budget, "a smaller alpha would not do"


def test_a_teacher_within_the_budget_is_the_target_itself() -> None:
    reference, teacher = logps(8, seed=3, scale=0.01)
    assert torch.equal(budget_alpha(reference, teacher, [8], 0.01), torch.zeros(8, dtype=torch.float64))
    assert torch.equal(budget_alpha(reference, reference, [3, 5], 1e-9), torch.zeros(8, dtype=torch.float64))


def test_the_loss_takes_the_alpha_of_the_response() -> None:
    """As a constant gate of that alpha on each response alone."""
    reference, teacher = logps(30, seed=4)
    student = logps(30, seed=5)[0]
    method = DemoPSD(gate="budget", alpha_max=1.0, kl_budget_nats=0.01)
    alpha = method.trajectory_alpha(reference, teacher, [12, 18])
    assert alpha is not None
    loss = reduced(method, TokenViews(student, reference, teacher, alpha_BT=alpha)).loss_BT
    for part in (slice(0, 12), slice(12, 30)):
        constant = replace(method, gate="constant", alpha_max=float(alpha[part][0]))
        one = reduced(constant, TokenViews(student[part], reference[part], teacher[part])).loss_BT
        torch.testing.assert_close(loss[part], one)
    assert DemoPSD().trajectory_alpha(reference, teacher, [30]) is None
    capped = replace(method, alpha_max=0.1).trajectory_alpha(reference, teacher, [12, 18])
    assert capped is not None
    assert float(capped.max()) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="whole trajectories"):
        method.target(reference, teacher)


def test_the_target_of_the_fitted_gate_on_its_own_tokens() -> None:
    reference, teacher = logps(500, seed=6)
    method = DemoPSD(gate="fitted", mean_alpha=0.06)
    gated = method.gated_target(reference, teacher)
    assert float(gated.alpha_BT.mean()) == pytest.approx(0.06, rel=1e-6)
    atoms = (floored(reference, method.floor), floored(teacher, method.floor))
    torch.testing.assert_close(gated.target_BTA, barycenter(*atoms, gated.alpha_BT))


def test_the_bound_of_alpha_follows_its_schedule() -> None:
    words = ["steps=11", "demopsd.gate=constant", "demopsd.alpha_max=0.5", "demopsd.alpha_max_final=0.0"]
    config = load(DEMO, words)
    bounds = [scheduled_alpha_max(config, step) for step in range(1, 12)]
    assert bounds == pytest.approx([0.5 - 0.05 * i for i in range(11)])
    assert scheduled_alpha_max(config, 40) == 0.0, "further steps stay at the end"
    method = at_step(objective_of(config), config, 6)
    assert isinstance(method, DemoPSD)
    assert method.alpha_max == pytest.approx(0.25)
    assert scheduled_alpha_max(load(DEMO, []), 7) == 0.15
    assert math.isclose(scheduled_alpha_max(load(DEMO, ["steps=1", *words[1:]]), 1), 0.5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demopsd.gate=budget", "demopsd.reference=live"], "demopsd.gate=budget looks at a whole step or response"),
        (["demopsd.gate=fitted", "demopsd.reference=live"], "demopsd.gate=fitted looks at a whole step or response"),
        (["demopsd.gate=fitted", "demopsd.mean_alpha=0.2"], "demopsd.mean_alpha=0.2 with demopsd.alpha_max=0.15"),
        (
            ["demopsd.gate=fitted", "demopsd.mean_alpha=0.06", "demopsd.alpha_max_final=0.02"],
            "demopsd.mean_alpha=0.06 with demopsd.alpha_max_final=0.02",
        ),
    ],
)
def test_gates_that_cannot_work_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(DEMO, words)
    assert message in str(refused.value)
