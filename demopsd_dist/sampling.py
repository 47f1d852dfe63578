"""Which questions a step asks, how they are sampled, and when a step asks for more."""

from __future__ import annotations

from collections.abc import Sequence

from demopsd_dist.config import Config
from demopsd_dist.data.lessons import Group, rewarded
from demopsd_dist.data.records import Prompt
from demopsd_dist.data.rewards import Reward
from demopsd_dist.data.sources import order
from demopsd_dist.methods import recipe
from demopsd_dist.roles import Rollouts, Sampling


async def sample_groups(
    cfg: Config, rollouts: Rollouts, prompts: Sequence[Prompt], reward: Reward, step: int
) -> list[Group]:
    """A step's groups, rewarded. A method with several rounds asks again for as many questions as have groups without
    signal, all of whose rewards are equal (DAPO's dynamic sampling)."""
    asked = prompts_of_step(prompts, cfg, step)
    groups: list[Group] = []
    for _ in range(recipe(cfg).sampling_rounds):
        sampled = await rollouts.sample(asked, train_sampling(cfg, step))
        groups += [rewarded(group, reward) for group in sampled]
        missing = cfg.rollout.prompts_per_step - sum(group.differs for group in groups)
        if missing <= 0:
            break
        asked = _more_prompts(prompts, cfg, step, {group.rollouts[0].prompt.id for group in groups}, missing)
        if not asked:
            break
    return groups


def learned_groups(cfg: Config, groups: Sequence[Group]) -> list[Group]:
    """Those that the step learns from: all, or with several rounds the first that have a signal."""
    if recipe(cfg).sampling_rounds == 1:
        return list(groups)
    return [group for group in groups if group.differs][: cfg.rollout.prompts_per_step]


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
