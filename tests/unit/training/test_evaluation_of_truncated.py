"""Evaluation of responses that were cut: with or without their reward, and of early answers, which are always cut."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from demopsd_dist.config import TruncatedReward
from demopsd_dist.data.records import Prompt, Rollout
from demopsd_dist.data.rewards import ANSWER_FORMS, AnswerForm, resolve_reward
from demopsd_dist.training.evaluate import evaluate
from demopsd_dist.training.roles import Rollouts, Sampling
from tests.unit.run_record.sample_rows import prompt, rollout


class CutRollouts:
    """Responses to any question: one that was cut, and one that was not."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        return [[replace(rollout(one, 0, self.text), truncated=True), rollout(one, 1, self.text)] for one in prompts]


@pytest.mark.parametrize(
    ("text", "begun", "truncated", "mean"),
    [
        ("so <answer>1</answer>", None, TruncatedReward.keep, 1.0),
        ("so <answer>1</answer>", None, TruncatedReward.zero, 0.5),
        ("1</answer> or <answer>2</answer>", ANSWER_FORMS["answer"], TruncatedReward.keep, 1.0),
        ("1</answer> or <answer>2</answer>", ANSWER_FORMS["answer"], TruncatedReward.zero, 1.0),
    ],
)
def test_the_mean_of_truncated_responses(
    text: str, begun: AnswerForm | None, truncated: TruncatedReward, mean: float
) -> None:
    rollouts = cast(Rollouts, CutRollouts(text))
    reward = resolve_reward("answer", truncated=truncated)
    sampling: Any = Sampling(2, 1.0, 1.0, 64, "seed")
    result = asyncio.run(evaluate(rollouts, [prompt("a")], sampling, reward, begun))
    assert result.mean.average == mean
    assert result.truncated_fraction == 0.5
