"""Training examples from groups of rollouts: reward each, compare it with its group, add a solution. Pure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from demopsd_dist.config import SolutionSource
from demopsd_dist.config.method_settings import MixedConfig, Routing
from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import (
    BatchSize,
    PrivilegedContext,
    Prompt,
    Question,
    RewardResult,
    Rollout,
    TermWeights,
    TrainingExample,
)
from demopsd_dist.data.rewards.builtin import ANSWER_FORMS, AnswerForm, Reward
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
    def undecided(self) -> int:
        """Number of rollouts whose answer could not be compared in time."""
        return sum(result.undecided for result in self.results)

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
    results = [
        (rollout, reward.result_of(rollout.full_text, rollout.prompt.question, is_truncated=rollout.truncated))
        for rollout in rollouts
    ]
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


@dataclass(frozen=True)
class ContextChooser:
    """Chooser of the solution and feedback that the teacher sees for a response of one step.

    A choice depends on `seed` and the rollout's id alone, not on the order of the groups.

    Attributes:
        seed: of the run and the step.
        feedback: show the feedback of the response's own reward (arXiv 2601.20802).
        form: notation of bare answers.
        solutions: solutions of the data set that may be shown, by question id (`DatasetSolutions`).
        others: questions of the step whose solutions `other_question` shows.
    """

    seed: str
    source: SolutionSource = SolutionSource.sibling
    exclude_own_success: bool = True
    feedback: bool = False
    form: AnswerForm = ANSWER_FORMS["answer"]
    solutions: Mapping[str, str] = field(default_factory=dict)
    others: Sequence[Question] = ()

    def choose(self, group: RewardedGroup, index: int) -> PrivilegedContext | None:
        """The context for the rollout at `index`; None where there is neither a solution nor feedback to show."""
        solutions = self._solutions(group, index)
        feedback = group.results[index].feedback if self.feedback else None
        if not solutions and feedback is None:
            return None
        different = tuple(dict.fromkeys(solutions.values()))
        return PrivilegedContext(different, feedback, "_and_".join(solutions) or "feedback")

    @property
    def sources(self) -> list[str]:
        """All sources that a context may have."""
        shown = [self.source.value]
        if self.source in (SolutionSource.sibling_or_dataset, SolutionSource.sibling_and_dataset):
            both = [] if self.source is SolutionSource.sibling_or_dataset else [self.source.value]
            shown = [SolutionSource.sibling.value, SolutionSource.dataset.value, *both]
        return [*shown, "feedback"] if self.feedback else shown

    def can_show(self, group: RewardedGroup) -> bool:
        """True if some rollout of the group has a context, so that the method can learn from the group."""
        return any(self.choose(group, i) is not None for i in range(len(group.rollouts)))

    def _solutions(self, group: RewardedGroup, index: int) -> dict[str, str]:
        """The solutions by their sources."""
        question, source = group.prompt.question, self.source
        if source is SolutionSource.answer_only:
            return {source.value: self.form.write(question.answer)}
        if source is SolutionSource.other_question:
            other = self._solution_of_another(group.rollouts[index])
            return {} if other is None else {source.value: other}
        sibling = self._sibling(group, index) if source.shows_siblings else None
        found = {} if sibling is None else {"sibling": sibling}
        shows_own = source.reads_data and not (found and source is SolutionSource.sibling_or_dataset)
        if shows_own and question.id in self.solutions:
            found["dataset"] = self.solutions[question.id]
        return found

    def _sibling(self, group: RewardedGroup, index: int) -> str | None:
        """Text of a correct rollout of the group, chosen at random (arXiv 2607.02502, section 4.4)."""
        siblings = group.siblings(index, self.exclude_own_success)
        if not siblings:
            return None
        name = group.rollouts[index].id
        return group.solution(random.Random(f"sibling/{self.seed}/{name}").choice(siblings))

    def _solution_of_another(self, rollout: Rollout) -> str | None:
        """Solution of another question of the step, chosen at random."""
        asked = rollout.prompt.question
        candidates = [
            self.solutions[other.id]
            for other in self.others
            if other.id in self.solutions and other.id != asked.id and other.text != asked.text
        ]
        return random.Random(f"other/{self.seed}/{rollout.id}").choice(candidates) if candidates else None


def examples_with_contexts(
    groups: Sequence[RewardedGroup], prompts: PromptBuilder, contexts: ContextChooser
) -> DistillationBatch:
    """Each rollout that has a context with the teacher's prompt for it; the others give no example."""
    examples: list[TrainingExample] = []
    for group in groups:
        advantages = group.advantages(scaled=False)
        for i, rollout in enumerate(group.rollouts):
            if (context := contexts.choose(group, i)) is None:
                continue
            view, cut = prompts.privileged_or_cut(rollout.prompt.question, context.solutions, context.feedback)
            reward = group.results[i].reward
            examples.append(TrainingExample(rollout, reward, advantages[i], view, context.source, cut))
    return DistillationBatch(examples, _size([example.rollout for example in examples]))


def examples_for_mixture(
    groups: Sequence[RewardedGroup], prompts: PromptBuilder, contexts: ContextChooser, mix: MixedConfig, *, scaled: bool
) -> DistillationBatch:
    """Each rollout with its advantage, with the teacher's prompt where it is distilled, and with the weights of both
    terms. One without either signal is dropped; the loss stays a mean over all rollouts."""
    examples: list[TrainingExample] = []
    for group in groups:
        advantages = group.advantages(scaled)
        for i, rollout in enumerate(group.rollouts):
            terms, context = mixture_terms(group, i, contexts, mix)
            if terms is None:
                continue
            view, source, cut = _NO_TOKENS, None, False
            if context is not None:
                source = context.source
                view, cut = prompts.privileged_or_cut(rollout.prompt.question, context.solutions, context.feedback)
            examples.append(TrainingExample(rollout, group.results[i].reward, advantages[i], view, source, cut, terms))
    return DistillationBatch(examples, _size([rollout for group in groups for rollout in group.rollouts]))


def mixture_terms(
    group: RewardedGroup, index: int, contexts: ContextChooser, mix: MixedConfig
) -> tuple[TermWeights | None, PrivilegedContext | None]:
    """Weights of a rollout's policy gradient and distillation, and the context that it is distilled with.

    Without a context its distillation has weight 0. Both are None where the rollout has neither signal: no context, and
    a group whose rewards are all equal.
    """
    routed = mix.routing is Routing.success
    may_distil = group.results[index].reward < SUCCESS if routed else mix.weight > 0
    context = contexts.choose(group, index) if may_distil else None
    policy, distillation = (0.0, 1.0) if routed else (1.0 - mix.weight, mix.weight)
    if context is None:
        policy, distillation = (1.0 if routed else policy), 0.0
    if context is None and not (policy and group.has_signal):
        return None, None
    return TermWeights(policy, distillation), context


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
    `feedback` the teacher also sees the feedback of the rollout's own reward, and feedback alone makes an example.
    """
    contexts = ContextChooser(seed=seed, exclude_own_success=exclude_own_success, feedback=feedback)
    return examples_with_contexts(groups, prompts, contexts)


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
