"""Prompts of a step: which questions are sampled, with which parameters, and what the teacher sees with them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

from demopsd_dist.config import Config, SolutionSource
from demopsd_dist.data.examples import ContextChooser, RewardedGroup, mixture_terms, reward_group
from demopsd_dist.data.mixture import MixedPrompts
from demopsd_dist.data.records import Prompt, Rollout
from demopsd_dist.data.rewards import answer_form
from demopsd_dist.data.sources import question_order
from demopsd_dist.run_record.ledger import DropReason
from demopsd_dist.training.roles import Sampling
from demopsd_dist.training.run import Run


async def stream_groups(run: Run, step: int) -> AsyncIterator[tuple[int, RewardedGroup]]:
    """A step's rewarded groups in the order in which they finish, each with its index in the step.

    A method with several sampling rounds samples as many further questions as there are groups that it cannot learn
    from (DAPO's dynamic sampling). `step` counts the steps done before.
    """
    cfg, ledger, group_size = run.cfg, run.ledger, run.cfg.rollout.group_size
    prompts = prompts_of_step(run.task.train, cfg, step)
    sampled_ids: set[str] = set()
    missing_groups, can_learn_from = cfg.rollout.prompts_per_step, signal_of(run, step)
    for _ in range(run.method.sampling_rounds):
        first_index, late_ids = len(sampled_ids), {prompt.id for prompt in prompts}
        ledger.issued(step + 1, prompts, group_size)
        stream = run.roles.rollouts.stream(prompts, train_sampling(cfg, step))
        async for index, rollouts in drop_stragglers(stream, len(prompts), cfg):
            group = reward_group(rollouts, run.task.reward)
            ledger.generated(step + 1, group.rollouts, group.unrewarded)
            missing_groups -= can_learn_from(group)
            late_ids.remove(group.prompt.id)
            yield first_index + index, group
        ledger.dropped(step + 1, itertools.product(sorted(late_ids), range(group_size)), DropReason.late)
        sampled_ids |= {prompt.id for prompt in prompts}
        prompts = _more_prompts(run.task.train, cfg, step, sampled_ids, missing_groups) if missing_groups > 0 else []
        if not prompts:
            break


async def drop_stragglers(
    groups: AsyncIterator[tuple[int, list[Rollout]]], count: int, cfg: Config
) -> AsyncIterator[tuple[int, list[Rollout]]]:
    """The first of `count` groups: after nine tenths of them, the rest have `rollout.late_group_s` to finish."""
    late_s, done = cfg.rollout.late_group_s, 0
    deadline = float("inf")
    try:
        while done < count:
            left_s = None if deadline == float("inf") else max(deadline - time.monotonic(), 0.0)
            try:
                group = await asyncio.wait_for(anext(groups), left_s)
            except TimeoutError:
                return
            yield group
            done += 1
            if late_s is not None and deadline == float("inf") and done >= 0.9 * count:
                deadline = time.monotonic() + late_s
    finally:
        if isinstance(groups, AsyncGenerator):
            await groups.aclose()


def signal_of(run: Run, step: int) -> Callable[[RewardedGroup], bool]:
    """The rule by which the method can learn from a group of a step.

    A method with a teacher can where one response at least has a privileged context, one with a policy
    gradient where the rewards differ, a mixed loss where a response has one of the two and a weight for it.
    """
    if not run.method.shows_solutions:
        return lambda group: group.has_signal
    contexts, mix = privileged_contexts(run, step), run.method.mix
    if mix is None:
        return contexts.can_show
    return lambda group: any(
        mixture_terms(group, index, contexts, mix)[0] is not None for index in range(len(group.rollouts))
    )


def prompts_of_step(prompts: Sequence[Prompt], cfg: Config, step: int) -> list[Prompt]:
    """The prompts of a step, all different. Each epoch is a new permutation and drops an incomplete last step; several
    training sets are drawn by their weights."""
    per_step = cfg.rollout.prompts_per_step
    if isinstance(prompts, MixedPrompts):
        return prompts.of_step(cfg.seed, per_step, step)
    epoch, step_of_epoch = divmod(step, len(prompts) // per_step)
    indices = question_order(len(prompts), cfg.seed, epoch)
    return [prompts[index] for index in indices[step_of_epoch * per_step : (step_of_epoch + 1) * per_step]]


def privileged_contexts(run: Run, step: int) -> ContextChooser:
    """The chooser of what the teacher sees in a step; it depends on settings, data and step alone."""
    cfg, privileged = run.cfg, run.cfg.privileged
    needs_others = privileged.source is SolutionSource.other_question
    return ContextChooser(
        seed=f"{cfg.seed}/{step}",
        source=privileged.source,
        exclude_own_success=privileged.exclude_own_success,
        feedback=privileged.feedback,
        form=answer_form(cfg.reward),
        solutions=run.task.solutions.texts,
        others=[prompt.question for prompt in prompts_of_step(run.task.train, cfg, step)] if needs_others else (),
    )


def _more_prompts(prompts: Sequence[Prompt], cfg: Config, step: int, used_ids: set[str], count: int) -> list[Prompt]:
    """Prompts that the step has not sampled yet, in an order that depends only on seed and step."""
    if isinstance(prompts, MixedPrompts):
        return prompts.more(cfg.seed, step, used_ids, count)
    indices = question_order(len(prompts), cfg.seed, -1 - step)
    return [prompts[index] for index in indices if prompts[index].id not in used_ids][:count]


def train_sampling(cfg: Config, step: int) -> Sampling:
    """Sampling parameters of a training step, from the unmodified distribution of the student."""
    rollout = cfg.rollout
    return Sampling(
        samples=rollout.group_size,
        temperature=rollout.temperature,
        top_p=1.0,  # a smaller nucleus would sample from another policy than the student
        max_response_tokens=rollout.max_response_tokens,
        seed=f"{cfg.seed}/{step}" if rollout.request_seeds else None,
    )


def evaluation_sampling(cfg: Config) -> Sampling:
    """Sampling parameters of every evaluation of a run."""
    settings = cfg.evaluation
    return Sampling(
        samples=settings.samples,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_response_tokens=settings.max_response_tokens or cfg.rollout.max_response_tokens,
        seed=f"{cfg.seed}/evaluation",
    )
