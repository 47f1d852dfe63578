"""Which questions a step asks, how they are sampled, and when a step asks for more."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from demopsd_dist.config import Config
from demopsd_dist.data.examples import RewardedGroup, reward_group
from demopsd_dist.data.records import Prompt, Rollout
from demopsd_dist.data.sources import order
from demopsd_dist.methods import resolve_method
from demopsd_dist.run_record.ledger import DropReason, Ledger
from demopsd_dist.training.roles import Rollouts, Sampling
from demopsd_dist.training.run import Task


async def step_groups(
    cfg: Config, rollouts: Rollouts, task: Task, step: int, ledger: Ledger
) -> AsyncIterator[tuple[int, RewardedGroup]]:
    """A step's groups, rewarded, each as soon as it is sampled, with its place in the step.

    A method with several rounds asks again for as many questions as have groups without signal, all of whose rewards
    are equal (DAPO's dynamic sampling).
    """
    asked = prompts_of_step(task.train, cfg, step)
    seen: set[str] = set()
    missing = cfg.rollout.prompts_per_step
    for _ in range(resolve_method(cfg).sampling_rounds):
        first_place, late = len(seen), {prompt.id for prompt in asked}
        ledger.issued(step + 1, asked, cfg.rollout.group_size)
        async for index, sampled in drop_stragglers(rollouts.stream(asked, train_sampling(cfg, step)), len(asked), cfg):
            group = reward_group(sampled, task.reward)
            ledger.generated(step + 1, group.rollouts, group.unrewarded)
            missing -= group.has_signal
            late.remove(group.prompt.id)
            yield first_place + index, group
        ledger.dropped(step + 1, itertools.product(sorted(late), range(cfg.rollout.group_size)), DropReason.late)
        seen |= {prompt.id for prompt in asked}
        asked = _more_prompts(task.train, cfg, step, seen, missing) if missing > 0 else []
        if not asked:
            break


async def drop_stragglers(
    groups: AsyncIterator[tuple[int, list[Rollout]]], count: int, cfg: Config
) -> AsyncIterator[tuple[int, list[Rollout]]]:
    """Those of `count` groups that come in time: once nine tenths are there, the others have `late_group_s` left."""
    late_s, done = cfg.rollout.late_group_s, 0
    deadline = float("inf")
    try:
        while done < count:
            left_s = None if deadline == float("inf") else max(deadline - time.monotonic(), 0.0)
            try:
                found = await asyncio.wait_for(anext(groups), left_s)
            except TimeoutError:
                return
            yield found
            done += 1
            if late_s is not None and deadline == float("inf") and done >= 0.9 * count:
                deadline = time.monotonic() + late_s
    finally:
        if isinstance(groups, AsyncGenerator):
            await groups.aclose()


def learned_groups(cfg: Config, groups: Sequence[RewardedGroup]) -> list[RewardedGroup]:
    """Those that a step of several rounds learns from: the first that have a signal."""
    return [group for group in groups if group.has_signal][: cfg.rollout.prompts_per_step]


def prompts_of_step(prompts: Sequence[Prompt], cfg: Config, step: int) -> list[Prompt]:
    """A step's different prompts: each epoch shuffles anew, and leaves out what does not fill a step."""
    per_step = cfg.rollout.prompts_per_step
    epoch, place = divmod(step, len(prompts) // per_step)
    walk = order(len(prompts), cfg.seed, epoch)
    return [prompts[index] for index in walk[place * per_step : (place + 1) * per_step]]


def _more_prompts(prompts: Sequence[Prompt], cfg: Config, step: int, asked: set[str], count: int) -> list[Prompt]:
    """Others than this step has asked, in an order of the step's own: what is asked does not hang on earlier steps."""
    walk = order(len(prompts), cfg.seed, -1 - step)
    return [prompts[index] for index in walk if prompts[index].id not in asked][:count]


def train_sampling(cfg: Config, step: int) -> Sampling:
    rollout = cfg.rollout
    return Sampling(
        samples=rollout.group_size,
        temperature=rollout.temperature,
        top_p=1.0,  # a nucleus would make the samples another policy's than the student's
        max_response_tokens=rollout.max_response_tokens,
        seed=f"{cfg.seed}/{step}",
    )


def evaluation_sampling(cfg: Config) -> Sampling:
    settings = cfg.evaluation
    return Sampling(
        samples=settings.samples,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_response_tokens=settings.max_response_tokens or cfg.rollout.max_response_tokens,
        seed=f"{cfg.seed}/evaluation",
    )
