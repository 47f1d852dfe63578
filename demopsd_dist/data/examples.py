"""Training examples from groups of rollouts: reward each, compare it with its group, add a correct sibling. Pure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import BatchSize, Prompt, RewardResult, Rollout, TrainingExample
from demopsd_dist.data.rewards.builtin import Reward
from demopsd_dist.data.thinking import holds_thought, strip_thinking
from demopsd_dist.util.errors import RewardError

SUCCESS = 0.5  # the lowest reward of a success
_NO_TOKENS = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True)
class RewardedGroup:
    """The rollouts of one question with the result of each; rollouts that the reward failed on are in `failures`.

    Attributes:
        unshowable: indices of successes that are no solution, since the text outside their thought is not right.
    """

    rollouts: Sequence[Rollout]
    results: Sequence[RewardResult]
    failures: Sequence[tuple[Rollout, RewardError]] = ()
    unshowable: frozenset[int] = frozenset()

    @property
    def prompt(self) -> Prompt:
        return [*self.rollouts, *self.unrewarded][0].prompt

    @property
    def unrewarded(self) -> list[Rollout]:
        return [rollout for rollout, _ in self.failures]

    @property
    def rewards(self) -> list[float]:
        return [result.reward for result in self.results]

    @property
    def has_signal(self) -> bool:
        """True where some rewards of the group differ."""
        return len(set(self.rewards)) > 1

    @property
    def successes(self) -> list[int]:
        """Indices of the rollouts with a reward of at least `SUCCESS`."""
        return [i for i, value in enumerate(self.rewards) if value >= SUCCESS]

    def index_of(self, sample: int) -> int:
        """Index in `rollouts` of the rollout with this sample number."""
        return [rollout.sample for rollout in self.rollouts].index(sample)

    def siblings(self, index: int, exclude_own_success: bool) -> list[int]:
        """Indices of the successes that may be the solution for the rollout at `index`."""
        solutions = [j for j in self.successes if j not in self.unshowable]
        return [j for j in solutions if j != index or not exclude_own_success]

    def solution(self, index: int) -> str:
        """Text of the rollout at `index` as the teacher may see it: without its thought."""
        return strip_thinking(self.rollouts[index].full_text)

    def advantages(self, scaled: bool) -> list[float]:
        """Reward minus the group's mean; `scaled` divides by its (population) standard deviation."""
        if not self.has_signal:
            return [0.0] * len(self.rewards)
        mean = statistics.fmean(self.rewards)
        scale = statistics.pstdev(self.rewards) + 1e-6 if scaled else 1.0
        return [(value - mean) / scale for value in self.rewards]


def reward_group(rollouts: Sequence[Rollout], reward: Reward) -> RewardedGroup:
    """Reward every rollout of one question, and reward the text outside its thought where a success holds one.

    Raises:
        RewardError: the reward fails on a rollout, and `reward.errors` is not `drop`.
    """
    results = [(rollout, reward.result_of(rollout.full_text, rollout.prompt.question)) for rollout in rollouts]
    rewarded = [(rollout, result) for rollout, result in results if isinstance(result, RewardResult)]
    failures = [(rollout, result) for rollout, result in results if isinstance(result, RewardError)]
    unshowable = frozenset(
        index
        for index, (rollout, result) in enumerate(rewarded)
        if result.reward >= SUCCESS and not _right_outside(rollout, reward)
    )
    return RewardedGroup([rollout for rollout, _ in rewarded], [result for _, result in rewarded], failures, unshowable)


def _right_outside(rollout: Rollout, reward: Reward) -> bool:
    """True where the text outside the thoughts of a success is a success too."""
    if not holds_thought(rollout.full_text):
        return True
    text = strip_thinking(rollout.full_text)
    result = reward.result_of(text, rollout.prompt.question) if text else None
    return isinstance(result, RewardResult) and result.reward >= SUCCESS


@dataclass(frozen=True)
class DistillationBatch:
    """The examples of one step, and the size of the batch that its loss is a mean of."""

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

    A group without a success that can be shown, and with `exclude_own_success` a lone one, gives no example. With
    `feedback` the teacher also sees the feedback of the rollout's own reward, and feedback alone makes an example
    (arXiv 2601.20802). The choice depends on `seed` and the rollout's id alone, not on the order of the groups.
    """
    examples: list[TrainingExample] = []
    for group in groups:
        advantages = group.advantages(scaled=False)
        for i, rollout in enumerate(group.rollouts):
            result, solution = group.results[i], None
            if siblings := group.siblings(i, exclude_own_success):
                chosen = random.Random(f"sibling/{seed}/{rollout.id}").choice(siblings)
                solution = group.solution(chosen)
            own_feedback = result.feedback if feedback else None
            if solution is not None or own_feedback is not None:
                view = prompts.privileged(rollout.prompt.question, solution, own_feedback)
                examples.append(TrainingExample(rollout, result.reward, advantages[i], view))
    return DistillationBatch(examples, _size([example.rollout for example in examples]))


def examples_from_rewards(
    groups: Sequence[RewardedGroup], *, scaled: bool, drop_zero_advantage: bool
) -> DistillationBatch:
    """Each rollout with its advantage. `drop_zero_advantage` drops rollouts of advantage 0; the loss stays a mean over
    all rollouts."""
    examples = [
        TrainingExample(rollout, reward, advantage, _NO_TOKENS)
        for group in groups
        for rollout, reward, advantage in zip(group.rollouts, group.rewards, group.advantages(scaled), strict=True)
        if advantage != 0.0 or not drop_zero_advantage
    ]
    return DistillationBatch(examples, _size([rollout for group in groups for rollout in group.rollouts]))


def _size(rollouts: Sequence[Rollout]) -> BatchSize:
    return BatchSize(tokens=sum(len(rollout.tokens_T) for rollout in rollouts), sequences=len(rollouts))
