"""Scores of answers to reasoning-gym's tasks, imported by the process of their reward alone."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from reasoning_gym.factory import ProceduralDataset

from demopsd_dist.data.records import Question
from demopsd_dist.data.rewards.comparison import plain_value, same_answer
from demopsd_dist.data.rewards.own_reward import NoRewardError
from demopsd_dist.data.sources.gym_tasks import dataset


def score(answer: str, question: Question) -> float:
    """The task's own `score_answer` of an answer, between 0 and 1; 1 for the expected answer in another spelling.

    The library's default scorer gives part of the score for an answer that holds the expected one, so `15` for `5`:
    with it, a number other than the expected one has 0.

    Raises:
        NoRewardError: the generator gives another question than the one that was asked.
    """
    assert question.task is not None
    key, index = json.loads(question.task)
    entry = _entry(key, index)
    if entry["answer"] != question.answer:
        raise NoRewardError(f"by a generator that gives other questions in each process: {question.id}.")
    task = dataset(key)
    if same_answer(answer, question.answer):
        return 1.0
    is_default = type(task).score_answer is ProceduralDataset.score_answer
    if is_default and plain_value(answer) is not None and plain_value(question.answer) is not None:
        return 0.0
    return min(1.0, max(0.0, float(task.score_answer(answer, entry))))


@lru_cache(maxsize=10_000)
def _entry(key: str, index: int) -> dict[str, Any]:
    return dataset(key)[index]
