"""Accuracy estimates: closed forms against counting, ties, missing answers, and coverage of the intervals."""

from __future__ import annotations

import itertools
import random
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demopsd_dist.data.accuracy import (
    AnswerGroup,
    best_with_replacement,
    estimate_accuracy,
    majority_reward,
    mean_reward,
    pass_at,
    pass_sizes,
)
from demopsd_dist.data.rewards import same_answer

rewards = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=7)


def answer_group(rewards: list[float], answers: list[str | None] | None = None, field: str = "physics") -> AnswerGroup:
    return AnswerGroup(field, rewards, answers or [None] * len(rewards))


@given(rewards)
def test_pass_equals_the_mean_over_all_draws(values: list[float]) -> None:
    for draws in range(1, len(values) + 1):
        counted = [max(draw) for draw in itertools.combinations(values, draws)]
        assert pass_at(answer_group(values), draws) == pytest.approx(sum(counted) / len(counted), abs=1e-12)


@given(rewards)
def test_pass_has_the_known_closed_form_for_right_and_wrong(values: list[float]) -> None:
    k, right = len(values), int(sum(values))
    for draws in range(1, k + 1):
        assert pass_at(answer_group(values), draws) == pytest.approx(
            1 - comb(k - right, draws) / comb(k, draws), abs=1e-12
        )
    assert pass_at(answer_group(values), 1) == pytest.approx(mean_reward(answer_group(values)))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_best_with_replacement_equals_the_mean_over_all_draws(values: list[float]) -> None:
    counted = [max(draw) for draw in itertools.product(values, repeat=len(values))]
    assert best_with_replacement(answer_group(values)) == pytest.approx(sum(counted) / len(counted), abs=1e-12)


@pytest.mark.parametrize(("right", "expected"), [(0, 0.0), (1, 0.644), (2, 0.882), (16, 1.0)])
def test_best_at_16_is_not_pass_at_16(right: int, expected: float) -> None:
    one = answer_group([1.0] * right + [0.0] * (16 - right))
    assert best_with_replacement(one) == pytest.approx(expected, abs=5e-4)
    assert pass_at(one, 16) == (1.0 if right else 0.0)


def test_best_with_replacement_agrees_with_random_draws() -> None:
    one, rng = answer_group([1.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0]), random.Random(0)
    drawn = [max(rng.choices(one.rewards, k=8)) for _ in range(20_000)]
    assert best_with_replacement(one) == pytest.approx(np.mean(drawn), abs=0.01)


def test_more_draws_than_responses_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pass@5 cannot be estimated from 4 responses"):
        pass_at(answer_group([1.0] * 4), 5)


@pytest.mark.parametrize(
    ("answers", "rewards", "expected"),
    [
        (["4", "4", "5"], [1, 1, 0], 1.0),
        (["5", "5", "4"], [0, 0, 1], 0.0),
        (["4", "4.0", "5", "5", "3"], [1, 1, 0, 0, 0], 0.5),  # two tie; a fair draw is right half the time
        (["4", "5", "6"], [1, 0, 0], 1 / 3),
        ([None, None, "4"], [0, 0, 1], 1.0),  # a missing answer does not vote
        ([None, None], [0, 0], 0.0),
        (["Ｂ", "b", "A", None], [1, 1, 0, 0], 1.0),
    ],
)
def test_majority(answers: list[str | None], rewards: list[float], expected: float) -> None:
    assert majority_reward(answer_group(rewards, answers), same_answer) == pytest.approx(expected)


@given(st.permutations([("4", 1.0), ("4", 1.0), ("5", 0.0), (None, 0.0), ("6", 0.0), ("5", 0.0)]))
def test_majority_does_not_depend_on_the_order(votes: list[tuple[str | None, float]]) -> None:
    answers, values = zip(*votes, strict=True)
    assert majority_reward(answer_group(list(values), list(answers)), same_answer) == 0.5


def test_each_field_counts_once() -> None:
    questions = [answer_group([1.0], field="physics")] * 9 + [answer_group([0.0], field="biology")]
    estimate = estimate_accuracy(questions, mean_reward)
    assert estimate.by_field == {"biology": 0.0, "physics": 1.0}
    assert (estimate.average, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


def test_the_interval_covers_the_truth_about_19_times_in_20() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        chances = rng.beta(1, 1, 60)
        questions = [
            answer_group(list(rng.binomial(1, p, 4).astype(float)), field=("physics", "biology")[i % 2])
            for i, p in enumerate(chances)
        ]
        estimate = estimate_accuracy(questions, mean_reward)
        covered += estimate.low <= 0.5 <= estimate.high
    assert 176 <= covered <= 199


def test_sizes_of_pass() -> None:
    assert [pass_sizes(k) for k in (1, 2, 6, 16)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8, 16]]
