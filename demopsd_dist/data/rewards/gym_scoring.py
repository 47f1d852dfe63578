"""Scores of answers to reasoning-gym's tasks, imported by the process of their reward alone."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from reasoning_gym.factory import ProceduralDataset

from demopsd_dist.data.records import Question
from demopsd_dist.data.rewards.comparison import plain_value, same_answer
from demopsd_dist.data.rewards.own_reward import NoRewardError
from demopsd_dist.data.sources.gym_tasks import dataset

_SPELLING_COUNTS = re.compile(r"[/\n]|\\frac|[0-9][eE][-+]?[0-9]")


def score(answer: str, question: Question) -> float:
    """The task's own `score_answer` of an answer, between 0 and 1.

    Most tasks have the library's default scorer, which compares characters and gives part of the score for an answer
    that holds the expected one, so 0.5 to `15` for `5`. In its place another spelling of the expected answer has 1, and
    another number 0. Fractions, numbers like `1e3` and answers of several lines are left to it: there the spelling may
    be the task.

    Raises:
        NoRewardError: the generator gives another question than the one that was asked.
    """
    assert question.task is not None
    key, index = json.loads(question.task)
    entry = _entry(key, index)
    if entry["answer"] != question.answer:
        raise NoRewardError(f"by a generator that gives other questions in each process: {question.id}.")
    task = dataset(key)
    is_default = type(task).score_answer is ProceduralDataset.score_answer
    if is_default and not any(_SPELLING_COUNTS.search(text) for text in (answer, question.answer)):
        if same_answer(answer, question.answer):
            return 1.0
        if plain_value(answer) is not None and plain_value(question.answer) is not None:
            return 0.0
    return min(1.0, max(0.0, float(task.score_answer(answer, entry))))


@lru_cache(maxsize=10_000)
def _entry(key: str, index: int) -> dict[str, Any]:
    return dataset(key)[index]
