"""Outcomes of long runs: each rule at both sides of its threshold."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.experiment.run_outcomes import OUTCOMES, has_leaked, outcome_lines


def run(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Record of a run that has none of the outcomes, with changes of its last evaluation, probe or curve."""
    last = {"mean": 0.60, "pass": 0.95, "unparsed": 0.0}
    last |= {name: value for name, value in changes.items() if name in last}
    rows = [(0, 0.36, 0.95, 0.20), (50, 0.65, 0.95, 0.30), (300, last["mean"], last["pass"], changes.get("ood", 0.40))]
    evaluations = [
        {"step": step, "split": split, "mean": mean, "pass": passes, "unparsed": last["unparsed"] * (step == 300)}
        for step, test, passes, ood in rows
        for split, mean in (("test", test), ("ood", ood))
    ]
    probe = {"early/test": {"mean": {"average": changes.get("early", 0.10)}}}
    curves = {"rollout/repeated_fraction": [0.0, changes.get("repeated", 0.0)]}
    return {"summary": {"seed": seed, "evaluation": probe}, "curves": curves, "evaluations": evaluations}


@pytest.mark.parametrize(
    ("outcome", "without", "having"),
    [
        ("collapsed", {"mean": 0.551}, {"mean": 0.549}),
        ("collapsed", {"unparsed": 0.10}, {"unparsed": 0.11}),
        ("collapsed", {"repeated": 0.50}, {"repeated": 0.51}),
        ("narrowed", {"pass": 0.921}, {"pass": 0.919}),
        ("forgets", {"ood": 0.271}, {"ood": 0.269}),
    ],
)
def test_each_rule_at_its_threshold(outcome: str, without: dict[str, Any], having: dict[str, Any]) -> None:
    assert [name for name, rule in OUTCOMES.items() if rule(run(**without))] == []
    assert [name for name, rule in OUTCOMES.items() if rule(run(**having))] == [outcome]


def test_a_leak_at_its_margin() -> None:
    assert not has_leaked(run(early=0.149), run(), 0.05)
    assert has_leaked(run(early=0.151), run(), 0.05)
    assert not has_leaked(run(early=0.151), run(), 0.10)


def test_a_run_that_ends_below_its_start_has_collapsed_however_little_it_fell() -> None:
    below = run(mean=0.35)
    for row in below["evaluations"]:
        if row["split"] == "test" and row["step"] == 50:
            row["mean"] = 0.37
    assert OUTCOMES["collapsed"](below)


def test_the_page_counts_the_seeds_of_each_arm() -> None:
    table = {
        "base": [run(seed) for seed in (0, 1)],
        "opsd": [run(0, ood=0.2), run(1, ood=0.2, early=0.3)],
        "grpo": [run(1), run(2, mean=0.3)],  # of seed 2 there is no base run
    }
    lines = outcome_lines(table, "base", 0.05)
    assert "| opsd | 0 of 2 | 0 of 2 | 2 of 2 | 1 of 2 |" in lines
    assert "| grpo | 1 of 2 | 0 of 2 | 0 of 2 | 0 of 1 |" in lines
    short = {arm: [each | {"evaluations": each["evaluations"][:4]} for each in rows] for arm, rows in table.items()}
    assert outcome_lines(short, "base", 0.05) == []


def test_leaks_are_counted_by_comparison_with_an_arm_of_the_same_seed() -> None:
    table = {"base": [run(0), run(1)], "opsd": [run(0, early=0.3), run(1, early=0.3)], "grpo": [run(0, early=0.26)]}
    assert "| opsd | 0 of 2 | 0 of 2 | 0 of 2 | 2 of 2 |" in outcome_lines(table, "base", 0.05)
    compared = outcome_lines(table, "grpo", 0.05)
    assert "| opsd | 0 of 2 | 0 of 2 | 0 of 2 | 0 of 1 |" in compared, "0.04 above grpo; of seed 1 there is no grpo run"
    assert "| grpo | 0 of 1 | 0 of 1 | 0 of 1 | – |" in compared
