"""How the batch of a step comes to be: its prompts sampled, marked, and its examples scored by the teacher."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from demopsd_dist.config import Config
from demopsd_dist.data.examples import DistillationBatch, RewardedGroup, examples_from_rewards, examples_from_siblings
from demopsd_dist.data.records import BatchSize, Rollout, ScoredExample
from demopsd_dist.methods import resolve_method
from demopsd_dist.run_record import samples
from demopsd_dist.run_record.ledger import DropReason
from demopsd_dist.training import leakage_probe
from demopsd_dist.training.coalesce import Coalescer
from demopsd_dist.training.prefetch import PrefetchQueue, open_prefetch_queue
from demopsd_dist.training.run import Run, RunState, Task
from demopsd_dist.training.step_prompts import learned_groups, step_groups
from demopsd_dist.util.errors import RewardError


@dataclass(frozen=True)
class ScoredGroups:
    """What came of some groups of a step."""

    size: BatchSize
    scored: list[ScoredExample]


@dataclass(frozen=True)
class StepBatch:
    """The rollouts of one step, rewarded, and the scored examples among them."""

    groups: list[RewardedGroup]
    size: BatchSize
    scored: list[ScoredExample]
    parts: list[list[str]]  # ids of those that were scored together, in that order
    figures: dict[str, float]  # of the leakage probe, where it was due, and of the workers
    kept: list[str]  # ids of the rollouts that go on record

    @property
    def rollouts(self) -> list[Rollout]:
        return [rollout for group in self.groups for rollout in group.rollouts]


def step_batches(run: Run, state: RunState) -> AbstractAsyncContextManager[PrefetchQueue[StepBatch]]:
    """The queue of the loop: a batch for each step to come."""

    def produce(step: int) -> Awaitable[StepBatch]:
        return build_step_batch(run, step)

    return open_prefetch_queue(produce, first_step=state.step, last_step=run.cfg.steps, ahead=run.cfg.rollout.ahead)


async def build_step_batch(run: Run, step: int) -> StepBatch:
    cfg, roles = run.cfg, run.roles
    at_the_end = resolve_method(cfg).sampling_rounds > 1 or cfg.deterministic  # else while others are still sampled
    places: dict[str, int] = {}
    found: dict[int, RewardedGroup] = {}

    def score(groups: list[RewardedGroup]) -> Awaitable[ScoredGroups]:
        return score_groups(run, step, groups)

    scoring = Coalescer(score)
    try:
        with run.log.timed("sample"):
            async for place, group in step_groups(cfg, roles.rollouts, run.task, step, run.ledger):
                found[place], places[group.prompt.id] = group, place
                if not at_the_end:
                    scoring.add(group)
        groups = [found[place] for place in sorted(found)]
        report_reward_failures(run, step, groups)
        if at_the_end:
            for group in kept_groups(run, step, groups):
                scoring.add(group)
        parts = await scoring.results()
    finally:
        scoring.cancel()
    scored = [item for part in parts for item in part.scored]
    together = [[item.id for item in part.scored] for part in parts]
    scored.sort(key=lambda item: (places[item.prompt.id], item.rollout.sample))
    size = sum((part.size for part in parts), BatchSize(0, 0))
    leakage: dict[str, float] = {}
    if leakage_probe.due(cfg, step):
        with run.log.timed("probe"):
            leakage = await leakage_probe.measure(cfg, roles.teacher, run.task.prompts, groups, scored)
    figures = leakage | roles.rollouts.figures() | roles.teacher.figures()
    kept = samples.drawn(cfg, step, [rollout for group in groups for rollout in group.rollouts])
    return StepBatch(groups, size, scored, together, figures, kept)


def report_reward_failures(run: Run, step: int, groups: Sequence[RewardedGroup]) -> None:
    """Tell of the responses that the reward has failed on, and were left out.

    Raises:
        RewardError: it has failed on every response of the step.
    """
    errors = [error for group in groups for _, error in group.failed]
    if not errors:
        return
    told = (
        f"{len(errors)} of {run.task.reward.name}'s marks of step {step + 1} are missing, the first since {errors[0]}"
    )
    if not any(group.rollouts for group in groups):
        raise RewardError(f"All {told}")
    run.log.note(f"warning: {told}")


def kept_groups(run: Run, step: int, groups: list[RewardedGroup]) -> list[RewardedGroup]:
    """Those that the step learns from; a method of several rounds may have sampled more than that."""
    if resolve_method(run.cfg).sampling_rounds == 1:
        return groups
    kept = learned_groups(run.cfg, groups)
    for group in groups:
        if group not in kept:
            reason = DropReason.not_needed if group.differs else DropReason.no_example
            run.ledger.dropped(step + 1, [(rollout.prompt.id, rollout.sample) for rollout in group.rollouts], reason)
    return kept


async def score_groups(run: Run, step: int, groups: list[RewardedGroup]) -> ScoredGroups:
    taught = examples_of_step(run.cfg, run.task, groups, step)
    learned = {example.id for example in taught.examples}
    silent = [(r.prompt.id, r.sample) for group in groups for r in group.rollouts if r.id not in learned]
    run.ledger.dropped(step + 1, silent, DropReason.no_example)
    with run.log.timed("support"):
        supports = await run.roles.learners.support(taught.examples)
    with run.log.timed("score"):
        scored = await run.roles.teacher.score(taught.examples, supports, resolve_method(run.cfg).forwards)
    run.ledger.scored(step + 1, taught.examples)
    return ScoredGroups(taught.size, scored)


def examples_of_step(cfg: Config, task: Task, groups: Sequence[RewardedGroup], step: int) -> DistillationBatch:
    made = resolve_method(cfg)
    if not made.shows_solutions:
        return examples_from_rewards(
            groups, scaled=made.scaled_advantage, leave_out_silent=made.silent_without_advantage
        )
    return examples_from_siblings(
        groups,
        task.prompts,
        exclude_own_success=cfg.privileged.exclude_own_success,
        seed=f"{cfg.seed}/{step}",
        feedback=cfg.privileged.feedback,
    )


def step_metrics(step: StepBatch, state: RunState) -> dict[str, float]:
    rollouts = step.rollouts
    tokens = [len(rollout.tokens_T) for rollout in rollouts]
    return {
        "rollout/reward_mean": sum(sum(group.rewards) for group in step.groups) / len(rollouts),
        "rollout/response_tokens_mean": sum(tokens) / len(rollouts),
        "rollout/truncated_fraction": sum(rollout.truncated for rollout in rollouts) / len(rollouts),
        "rollout/samples": float(len(rollouts)),
        "rollout/tokens": float(sum(tokens)),
        "rollout/groups_differing_fraction": sum(group.differs for group in step.groups) / len(step.groups),
        "rollout/learned_fraction": len(step.scored) / len(rollouts),
        "rollout/learned_tokens": float(sum(item.example.response_length_tokens for item in step.scored)),
        "rollout/reward_errors": float(sum(len(group.failed) for group in step.groups)),
        "rollout/groups": float(len(step.groups)),
        "policy/age_steps_max": float(state.step - 1 - min(rollout.oldest_version for rollout in rollouts)),
        "policy/age_steps_mean": state.step - 1 - sum(int(r.version_T.sum()) for r in rollouts) / sum(tokens),
        **step.figures,
    }
