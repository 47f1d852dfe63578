"""Leakage metrics: relations between them, and the probe that measures mutual information."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from demopsd_dist.config import Config, load
from demopsd_dist.data.examples import RewardedGroup, examples_from_siblings, reward_group
from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import ScoredExample
from demopsd_dist.data.rewards import resolve_reward
from demopsd_dist.methods import resolve_method
from demopsd_dist.minisci.tokenizer import byte_tokenizer
from demopsd_dist.objective import DemoPSD, barycenter, demopsd_loss, leakage_terms, mutual_information, ordering_terms
from demopsd_dist.testing import StandInTeacher, World
from demopsd_dist.training.probes import leakage_probe
from tests.unit.run_record.sample_rows import prompt, rollout

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
T, V = 6, 9
proven = settings(deadline=None, max_examples=60)


def draw(seed: int, scale: float, *shape: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, V, generator=random, dtype=torch.float64)).log_softmax(-1)


@proven
@given(
    seed=st.integers(0, 10_000), scale=st.sampled_from([0.01, 1.0, 8.0]), alpha_max=st.sampled_from([0.15, 0.5, 1.0])
)
def test_relations_at_every_token(seed: int, scale: float, alpha_max: float) -> None:
    """KL(q|s) <= KL(r|s); (1 - alpha_max)^2 R <= R_demo <= R; the centred form is exact."""
    s, r = draw(seed, scale, T), draw(seed + 1, scale, T)
    method = DemoPSD(alpha_max=alpha_max, floor=1e-30)
    result = demopsd_loss(s, s, r, torch.ones(T), top_k=None, alpha_max=alpha_max, floor=1e-30)
    q = method.target(s, r)
    terms = leakage_terms(s, r, q, result.alpha_BT)
    assert (terms["leakage/target_nats"] <= terms["leakage/teacher_nats"] + 1e-10).all()
    assert (terms["leakage/r_demo"] <= terms["leakage/r_leak"]).all()
    assert (terms["leakage/r_demo"] >= (1 - alpha_max) ** 2 * terms["leakage/r_leak"] - 1e-10).all()
    w, x = s.exp(), q - s
    centred = (w * (x - (w * x).sum(-1, keepdim=True)) ** 2).sum(-1)
    torch.testing.assert_close(terms["leakage/target_variance"], centred, atol=1e-9, rtol=1e-7)


def test_a_violated_order_of_entropies_is_reported() -> None:
    """s sharp, r flat: less entropic than the teacher. s flat, r sharp along s: in order."""
    sharp = torch.tensor([[4.0, 0.0, 0.0]], dtype=torch.float64).log_softmax(-1)
    flat = torch.zeros(1, 3, dtype=torch.float64).log_softmax(-1)
    alpha = torch.tensor([0.15], dtype=torch.float64)
    broken = ordering_terms(sharp, flat, barycenter(sharp, flat, alpha))
    assert broken["entropy/order_violated_fraction"].item()
    assert broken["entropy/target_below_teacher_fraction"].item()
    assert broken["entropy/covariance_negative_fraction"].item()
    mild = (0.25 * sharp).log_softmax(-1)
    ordered = ordering_terms(mild, sharp, barycenter(mild, sharp, alpha))
    assert not any(value.item() for name, value in ordered.items() if name.endswith("fraction"))


def test_information_by_hand() -> None:
    """Two contexts that never agree have information ln 2; equal ones have none."""
    apart = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64).clamp(min=1e-300).log()
    assert mutual_information(apart).item() == pytest.approx(math.log(2))
    same = draw(0, 1.0, 1, T).expand(5, T, V)
    assert mutual_information(same).abs().max() < 1e-12
    with pytest.raises(ValueError, match="over 1 context is not defined; give at least 2"):
        mutual_information(same[:1])


def test_information_of_a_sample_of_contexts_is_low_and_grows_with_m() -> None:
    population = draw(0, 2.0, 64, 1)
    of_population = mutual_information(population).item()
    random = torch.Generator().manual_seed(0)

    def estimate(m: int) -> float:
        picks = (torch.randperm(64, generator=random)[:m] for _ in range(400))
        return sum(mutual_information(population[pick]).item() for pick in picks) / 400

    estimates = [estimate(m) for m in (2, 4, 8, 16)]
    assert estimates == sorted(estimates)
    assert estimates[-1] < of_population
    assert all(value <= math.log(m) for value, m in zip(estimates, (2, 4, 8, 16), strict=True))


RIGHT, WRONG = "so <answer>1</answer>", "hm <answer>2</answer>"


def groups_and_scores(config: Config, builder: PromptBuilder) -> tuple[list[RewardedGroup], list[ScoredExample]]:
    texts = [[RIGHT, f"other {RIGHT}", WRONG, RIGHT], [WRONG] * 4, [RIGHT, RIGHT, RIGHT, WRONG]]
    groups = [
        reward_group([rollout(prompt(f"q{g}"), i, text) for i, text in enumerate(row)], resolve_reward("answer"))
        for g, row in enumerate(texts)
    ]
    examples = examples_from_siblings(groups, builder, exclude_own_success=True, seed="0").examples
    supports = [np.zeros((4, 4), np.int32)] * len(examples)
    scored = asyncio.run(StandInTeacher(World()).score(examples, supports, resolve_method(config).forwards))
    return groups, scored


def test_the_probe_chooses_responses_with_different_solutions() -> None:
    config = load(DEMO, ["leakage.contexts=3"])
    builder = PromptBuilder(byte_tokenizer())
    groups, scored = groups_and_scores(config, builder)
    probes = list(leakage_probe.select_probes(config, groups, scored))
    assert [(p.family, p.item.id) for p in probes] == [
        ("siblings", "q0#0"),
        ("answers", "q0#0"),
        ("answers", "q2#0"),
    ], "q1 has no success, and all other right responses to q2 are the same"
    assert probes[0].solutions == [f"other {RIGHT}", RIGHT], "its own text once, from a sibling that wrote the same"
    assert probes[1].solutions == ["<answer>1</answer>", "<answer>2</answer>"]


@pytest.mark.parametrize("words", [["method=demopsd"], ["demopsd.reference=live"], ["method=sdpo"], ["method=opsd"]])
def test_the_probe_reports_both_families_and_m(words: list[str]) -> None:
    config = load(DEMO, words)
    builder = PromptBuilder(byte_tokenizer())
    groups, scored = groups_and_scores(config, builder)
    method = resolve_method(config)
    metrics = asyncio.run(leakage_probe.measure(config, method, StandInTeacher(World()), builder, groups, scored))
    for family in ("siblings", "answers"):
        assert metrics[f"leakage/{family}_contexts_mean"] == 2
        assert 0 < metrics[f"leakage/{family}_teacher_nats"] <= math.log(2)
        ratio = metrics[f"leakage/{family}_target_nats"] / metrics[f"leakage/{family}_teacher_nats"]
        assert metrics[f"leakage/{family}_ratio"] == pytest.approx(ratio)
        assert (ratio == 1) == ("demopsd" not in words[0]), "the target of the other methods is the teacher"


def test_the_probe_is_due_at_its_steps_and_for_methods_with_a_teacher() -> None:
    def due_steps(*words: str) -> list[int]:
        config = load(DEMO, words)
        return [step for step in range(7) if leakage_probe.is_due(config, resolve_method(config), step)]

    assert due_steps("leakage.every_steps=3") == [0, 3, 6]
    assert due_steps("leakage.every_steps=0") == []
    assert due_steps("method=grpo") == []
