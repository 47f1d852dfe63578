"""Accuracy estimates from several responses to each question, with confidence intervals. Pure.

k responses to a question, of which c are right:

* mean@k: c / k.
* maj@k: whether the most frequent answer is right. Responses without an answer do not vote; where several answers tie,
  the estimate is the expectation of a fair draw among them; without any answer it is 0.
* pass@j, j <= k: the probability that j responses drawn *without* replacement hold a right one,
  1 - C(k-c, j) / C(k, j); the unbiased estimate of the probability for j new responses.
* best@k as verl prints it: the mean over draws of k *with* replacement, here its exact expectation 1 - (1 - c/k)^k
  instead of 1,000 random draws. It is below pass@k: of 16 with one right, 0.644 against 1.

Rewards between 0 and 1 are allowed: "right" is then the best reward of a draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class AnswerGroup:
    """The responses to one question: the reward of each, and the answer extracted from it."""

    field: str
    rewards: Sequence[float]
    answers: Sequence[str | None]


@dataclass(frozen=True)
class AccuracyEstimate:
    """An average over the fields, each counting once, with its 95 % interval over questions.

    The interval is that of a bootstrap that redraws the questions of each field (2,000 times, always the same draws).
    It does not include the variation between training seeds.
    """

    average: float
    low: float
    high: float
    by_field: dict[str, float]


def estimate_accuracy(groups: Sequence[AnswerGroup], value_of: Callable[[AnswerGroup], float]) -> AccuracyEstimate:
    """Average of `value_of` over the questions of each field, then over the fields, with its interval."""
    values = {name: np.array([value_of(group) for group in groups if group.field == name]) for name in fields(groups)}
    by_field = {name: float(of_field.mean()) for name, of_field in values.items()}
    rng = np.random.default_rng(0)
    redrawn = [v[rng.integers(0, len(v), (RESAMPLES, len(v)))].mean(axis=1) for v in values.values()]
    low, high = np.quantile(np.mean(redrawn, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return AccuracyEstimate(float(np.mean(list(by_field.values()))), float(low), float(high), by_field)


def fields(groups: Iterable[AnswerGroup]) -> list[str]:
    """Names of the fields, sorted."""
    return sorted({group.field for group in groups})


def mean_reward(group: AnswerGroup) -> float:
    """mean@k."""
    return float(np.mean(group.rewards))


def majority_reward(group: AnswerGroup, same: Callable[[str, str], bool]) -> float:
    """maj@k: the reward of the most frequent answer.

    Args:
        same: whether two answers are equal, as "12" and "12.0" are.
    """
    ballots: list[tuple[str, list[float]]] = []  # an answer, and the rewards of the responses that give it
    for answer, reward in zip(group.answers, group.rewards, strict=True):
        if answer is not None:
            rewards = next((rewards for other, rewards in ballots if same(answer, other)), None)
            if rewards is None:
                ballots.append((answer, [reward]))
            else:
                rewards.append(reward)
    votes = max((len(rewards) for _, rewards in ballots), default=0)
    leaders = [float(np.mean(rewards)) for _, rewards in ballots if len(rewards) == votes]
    return float(np.mean(leaders)) if leaders else 0.0


def pass_at(group: AnswerGroup, draws: int) -> float:
    """pass@draws: the expected best reward of `draws` responses without replacement.

    Raises:
        ValueError: there are fewer responses than draws.
    """
    k = len(group.rewards)
    if not 0 < draws <= k:
        raise ValueError(f"pass@{draws} cannot be estimated from {k} responses; give at most {k}.")
    # The i-th smallest (from 1) is the best of a draw that holds it and otherwise smaller ones.
    chances = [comb(i - 1, draws - 1) / comb(k, draws) for i in range(1, k + 1)]
    return float(np.dot(np.sort(group.rewards), chances))


def best_with_replacement(group: AnswerGroup) -> float:
    """verl's best@k: the expected best reward of k draws with replacement from the k responses."""
    k = len(group.rewards)
    at_most = (np.arange(k + 1) / k) ** k  # probability that all draws are among the i smallest
    return float(np.dot(np.sort(group.rewards), np.diff(at_most)))


def pass_sizes(samples: int) -> list[int]:
    """The j of pass@j that are reported: 1, 2, 4, ... and `samples` itself."""
    return [*(2**i for i in range(samples.bit_length()) if 2**i < samples), samples]
