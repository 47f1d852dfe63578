"""From groups of rollouts to examples: mark each, compare it with its group, show it a correct sibling. Pure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import BatchSize, Prompt, RewardResult, Rollout, TrainingExample
from demopsd_dist.data.rewards.builtin import Reward
from demopsd_dist.util.errors import RewardError

SUCCESS = 0.5  # a score of at least this is a success
_NO_TOKENS = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True)
class RewardedGroup:
    """The responses to one question, and what each is worth. Those that the reward failed on are apart, with why."""

    rollouts: Sequence[Rollout]
    marks: Sequence[RewardResult]
    failed: Sequence[tuple[Rollout, RewardError]] = ()

    @property
    def prompt(self) -> Prompt:
        return [*self.rollouts, *self.unmarked][0].prompt

    @property
    def unmarked(self) -> list[Rollout]:
        return [rollout for rollout, _ in self.failed]

    @property
    def rewards(self) -> list[float]:
        return [mark.score for mark in self.marks]

    @property
    def differs(self) -> bool:
        """Some responses are better than others."""
        return len(set(self.rewards)) > 1

    @property
    def successes(self) -> list[int]:
        return [i for i, value in enumerate(self.rewards) if value >= SUCCESS]

    def place(self, sample: int) -> int:
        """Where the response of this number stands."""
        return [rollout.sample for rollout in self.rollouts].index(sample)

    def siblings(self, place: int, exclude_own_success: bool) -> list[int]:
        """The places of the right ones that the one at this place may be shown."""
        return [j for j in self.successes if j != place or not exclude_own_success]

    def advantages(self, scaled: bool) -> list[float]:
        """Reward minus the group's mean; `scaled` divides by its (population) standard deviation."""
        if not self.differs:
            return [0.0] * len(self.rewards)
        mean = statistics.fmean(self.rewards)
        scale = statistics.pstdev(self.rewards) + 1e-6 if scaled else 1.0
        return [(value - mean) / scale for value in self.rewards]


def rewarded(rollouts: Sequence[Rollout], reward: Reward) -> RewardedGroup:
    """
    Raises:
        RewardError: the reward fails, unless it is one that drops what it fails on.
    """
    given = [(rollout, reward.mark(rollout.text, rollout.prompt.question)) for rollout in rollouts]
    marked = [(rollout, mark) for rollout, mark in given if isinstance(mark, RewardResult)]
    failed = [(rollout, error) for rollout, error in given if isinstance(error, RewardError)]
    return RewardedGroup([rollout for rollout, _ in marked], [mark for _, mark in marked], failed)


@dataclass(frozen=True)
class DistillationBatch:
    """What one step learns from, and the size of the batch that its loss is a mean of."""

    examples: list[TrainingExample]
    size: BatchSize


def examples_from_siblings(
    groups: Sequence[RewardedGroup],
    prompts: PromptBuilder,
    *,
    exclude_own_success: bool,
    seed: str,
    feedback: bool = False,
) -> DistillationBatch:
    """Each rollout with a randomly chosen correct one of its group for the teacher (arXiv 2607.02502, section 4.4).

    A group without success, and with `exclude_own_success` a lone success in its group, gives no example. With
    `feedback` the teacher also sees what the rollout's own mark says of it, and where there is such feedback, that
    alone makes a example (arXiv 2601.20802). The choice depends on `seed` and the rollout's id alone, not on the
    order of the groups.
    """
    examples: list[TrainingExample] = []
    for group in groups:
        advantages = group.advantages(scaled=False)
        for i, rollout in enumerate(group.rollouts):
            mark, solution = group.marks[i], None
            if siblings := group.siblings(i, exclude_own_success):
                shown = random.Random(f"sibling/{seed}/{rollout.id}").choice(siblings)
                solution = group.rollouts[shown].text
            said = mark.feedback if feedback else None
            if solution is not None or said is not None:
                view = prompts.privileged(rollout.prompt.question, solution, said)
                examples.append(TrainingExample(rollout, mark.score, advantages[i], view))
    return DistillationBatch(examples, _size([example.rollout for example in examples]))


def examples_from_rewards(
    groups: Sequence[RewardedGroup], *, scaled: bool, leave_out_silent: bool
) -> DistillationBatch:
    """Each rollout with its advantage. `leave_out_silent` drops those without; the loss is a mean over all still."""
    examples = [
        TrainingExample(rollout, reward, advantage, _NO_TOKENS)
        for group in groups
        for rollout, reward, advantage in zip(group.rollouts, group.rewards, group.advantages(scaled), strict=True)
        if advantage != 0.0 or not leave_out_silent
    ]
    return DistillationBatch(examples, _size([rollout for group in groups for rollout in group.rollouts]))


def _size(rollouts: Sequence[Rollout]) -> BatchSize:
    return BatchSize(tokens=sum(len(rollout.tokens_T) for rollout in rollouts), sequences=len(rollouts))
