"""Accuracy figures from several responses to each question, and how sure one can be of them. Pure.

k responses to a question, of which c are right:

* mean@k: c / k.
* maj@k: whether the most frequent answer is right. Responses without an answer do not vote; where several answers tie,
  the figure is what a fair draw among them gives; where nobody answers, 0.
* pass@j, j <= k: the chance that j responses drawn *without* replacement hold a right one, 1 - C(k-c, j) / C(k, j); the
  unbiased estimate of the chance for j new responses.
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
    """The responses to one question: what each is worth, and the answer found in it."""

    field: str
    scores: Sequence[float]
    answers: Sequence[str | None]


@dataclass(frozen=True)
class AccuracyEstimate:
    """An average over the fields, each counting once, with its 95 % interval over questions.

    The interval is that of a bootstrap that redraws the questions of each field (2,000 times, always the same draws).
    It says nothing about what another training seed would give.
    """

    average: float
    low: float
    high: float
    by_field: dict[str, float]


def figure(marked: Sequence[AnswerGroup], of_question: Callable[[AnswerGroup], float]) -> AccuracyEstimate:
    values = {name: np.array([of_question(m) for m in marked if m.field == name]) for name in fields(marked)}
    by_field = {name: float(of_field.mean()) for name, of_field in values.items()}
    rng = np.random.default_rng(0)
    redrawn = [v[rng.integers(0, len(v), (RESAMPLES, len(v)))].mean(axis=1) for v in values.values()]
    low, high = np.quantile(np.mean(redrawn, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return AccuracyEstimate(float(np.mean(list(by_field.values()))), float(low), float(high), by_field)


def fields(marked: Iterable[AnswerGroup]) -> list[str]:
    return sorted({m.field for m in marked})


def mean_score(marked: AnswerGroup) -> float:
    return float(np.mean(marked.scores))


def majority(marked: AnswerGroup, same: Callable[[str, str], bool]) -> float:
    """`same` tells whether two answers are one, as "12" and "12.0" are."""
    ballots: list[tuple[str, list[float]]] = []  # an answer, and the scores of those who gave it
    for answer, score in zip(marked.answers, marked.scores, strict=True):
        if answer is not None:
            mine = next((scores for known, scores in ballots if same(answer, known)), None)
            if mine is None:
                ballots.append((answer, [score]))
            else:
                mine.append(score)
    most = max((len(scores) for _, scores in ballots), default=0)
    leaders = [float(np.mean(scores)) for _, scores in ballots if len(scores) == most]
    return float(np.mean(leaders)) if leaders else 0.0


def best_of(marked: AnswerGroup, draws: int) -> float:
    """Expected best score of `draws` responses without replacement: pass@draws."""
    k = len(marked.scores)
    if not 0 < draws <= k:
        raise ValueError(f"pass@{draws} cannot be estimated from {k} responses; give at most {k}.")
    # The i-th smallest (from 1) is the best of a draw that holds it and otherwise smaller ones.
    chances = [comb(i - 1, draws - 1) / comb(k, draws) for i in range(1, k + 1)]
    return float(np.dot(np.sort(marked.scores), chances))


def best_with_replacement(marked: AnswerGroup) -> float:
    """Expected best score of as many responses as there are, drawn with replacement: verl's best@k."""
    k = len(marked.scores)
    at_most = (np.arange(k + 1) / k) ** k  # chance that all draws are among the i smallest
    return float(np.dot(np.sort(marked.scores), np.diff(at_most)))


def pass_sizes(samples: int) -> list[int]:
    """1, 2, 4, ... and `samples` itself."""
    return [*(2**i for i in range(samples.bit_length()) if 2**i < samples), samples]
