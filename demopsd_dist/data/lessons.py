"""From groups of rollouts to lessons: reward each, and give each a correct sibling to learn from. Pure and seeded."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import Lesson, Rollout

Reward = Callable[[str, str], float]  # (response text, expected answer) -> 0.0 .. 1.0
SUCCESS = 0.5  # a reward of at least this is a success


@dataclass(frozen=True)
class Graded:
    """The lessons of one step, and what all its rollouts were worth."""

    lessons: list[Lesson]
    rollouts: list[Rollout]
    rewards: list[float]

    @property
    def active_fraction(self) -> float:
        """Share of the rollouts that have a correct sibling, and so are learned from."""
        return len(self.lessons) / max(len(self.rollouts), 1)


def grade(
    groups: Sequence[Sequence[Rollout]], reward: Reward, prompts: PromptBuilder, *, exclude_own_success: bool, seed: str
) -> Graded:
    """Reward every rollout; pair it with a randomly chosen correct one of its group (arXiv 2607.02502, section 4.4).

    A group without success, and with `exclude_own_success` a lone success in its group, gives no lesson. The choice
    depends on `seed` and the rollout's id alone, not on the order in which groups arrive.
    """
    lessons: list[Lesson] = []
    all_rewards: list[float] = []
    for group in groups:
        rewards = [reward(rollout.text, rollout.prompt.question.answer) for rollout in group]
        all_rewards += rewards
        successes = [i for i, value in enumerate(rewards) if value >= SUCCESS]
        for i, rollout in enumerate(group):
            siblings = [j for j in successes if j != i or not exclude_own_success]
            if siblings:
                shown = random.Random(f"sibling/{seed}/{rollout.id}").choice(siblings)
                view = prompts.privileged(rollout.prompt.question, group[shown].text)
                lessons.append(Lesson(rollout, rewards[i], view))
    return Graded(lessons, [rollout for group in groups for rollout in group], all_rewards)
