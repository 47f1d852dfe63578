"""Rewards: built-in comparisons of answers, and user functions in a process of their own.

A user's reward needs one import: `from demopsd_dist.data.rewards import Question, RewardResult`. See docs/rewards.md.
"""

from demopsd_dist.data.records import Question, RewardResult
from demopsd_dist.data.rewards.builtin import (
    ANSWER_FORMS,
    AnswerForm,
    Reward,
    answer_form,
    answer_reward,
    other_form,
    resolve_reward,
)
from demopsd_dist.data.rewards.comparison import same_answer
from demopsd_dist.data.rewards.extraction import extract_answer

__all__ = [
    "ANSWER_FORMS",
    "AnswerForm",
    "Question",
    "Reward",
    "RewardResult",
    "answer_form",
    "answer_reward",
    "extract_answer",
    "other_form",
    "resolve_reward",
    "same_answer",
]
