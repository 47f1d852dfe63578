"""Scores of answers to reasoning-gym's tasks, imported by the process of their reward alone."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from demopsd_dist.data.records import Question
from demopsd_dist.data.rewards.own_reward import NoRewardError
from demopsd_dist.data.sources.gym_tasks import dataset


def score(answer: str, question: Question) -> float:
    """The task's own `score_answer` of an answer, between 0 and 1.

    Raises:
        NoRewardError: the generator gives another question than the one that was asked.
    """
    assert question.task is not None
    key, index = json.loads(question.task)
    entry = _entry(key, index)
    if entry["answer"] != question.answer:
        raise NoRewardError(f"by a generator that gives other questions in each process: {question.id}.")
    return min(1.0, max(0.0, float(dataset(key).score_answer(answer, entry))))


@lru_cache(maxsize=10_000)
def _entry(key: str, index: int) -> dict[str, Any]:
    return dataset(key)[index]
