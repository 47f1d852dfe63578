"""Reward of questions of reasoning-gym: the task's own `score_answer`, in a process that can be ended."""

from __future__ import annotations

from demopsd_dist.config import Limits
from demopsd_dist.data.records import Question, RewardResult
from demopsd_dist.data.rewards.own_reward import NoRewardError, OwnReward

_SCORE = "demopsd_dist.data.rewards.gym_scoring.score"


class GymReward:
    """Score of an answer to a question that has a `task`. The process is started at the first one.

    Args:
        limits: `reward_s` is the time limit of a score, `start_s` that of the import of reasoning-gym.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: OwnReward | None = None

    def __call__(self, answer: str | None, question: Question) -> RewardResult:
        """Score an answer; no answer is 0, and so is one on which the scorer fails or takes too long (`undecided`).

        Raises:
            ConfigError: reasoning-gym cannot be imported in time.
        """
        if answer is None:
            return RewardResult(0.0)
        if self._process is None:
            self._process = OwnReward(_SCORE, self._limits.start_s, self._limits.reward_s)
        try:
            return RewardResult(self._process(answer, question).reward)
        except NoRewardError:
            return RewardResult(0.0, undecided=True)
