"""The batch of one training step: its prompts sampled and rewarded, its examples scored by the teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from demopsd_dist.data.examples import (
    DistillationBatch,
    RewardedGroup,
    examples_for_mixture,
    examples_from_rewards,
    examples_with_contexts,
)
from demopsd_dist.data.packing import pack
from demopsd_dist.data.records import BatchSize, DigestRequest, Rollout, ScoredExample, TrainBatch, TrainingExample
from demopsd_dist.run_record import samples
from demopsd_dist.run_record.ledger import DropReason
from demopsd_dist.training.pipelining import Coalescer, PrefetchQueue, open_prefetch_queue
from demopsd_dist.training.probes import leakage_probe
from demopsd_dist.training.run import Run, RunState
from demopsd_dist.training.step_prompts import privileged_contexts, signal_of, stream_groups
from demopsd_dist.util.errors import RewardError


@dataclass(frozen=True)
class ScoredGroups:
    """The examples of some groups of a step, scored in one call, with the groups' share of the batch size."""

    size: BatchSize
    scored: list[ScoredExample]


@dataclass(frozen=True)
class StepBatch:
    """The rollouts of one step, rewarded, and the scored examples among them, in the order of the step's prompts."""

    groups: list[RewardedGroup]
    size: BatchSize
    scored: list[ScoredExample]
    score_calls: list[list[str]]  # rollout ids of each scoring call, in the order of the call
    metrics: dict[str, float]  # of groups, teacher's views, rollout and teacher workers, and perhaps a leakage probe
    recorded_ids: list[str]  # rollouts whose tokens are recorded

    @property
    def rollouts(self) -> list[Rollout]:
        return [rollout for group in self.groups for rollout in group.rollouts]

    @property
    def examples(self) -> list[TrainingExample]:
        return [item.example for item in self.scored]


def step_batches(run: Run, state: RunState) -> AbstractAsyncContextManager[PrefetchQueue[StepBatch]]:
    """A prefetch queue with the batch of each remaining step."""

    def build(step: int) -> Awaitable[StepBatch]:
        return build_step_batch(run, step)

    return open_prefetch_queue(build, first_step=state.step, last_step=run.cfg.steps, ahead=run.cfg.rollout.ahead)


async def build_step_batch(run: Run, step: int) -> StepBatch:
    """Sample, reward and score the prompts of a step.

    Groups are scored while others are still sampled, except where the method has several sampling rounds or the run
    is deterministic: then all are scored in one call at the end.

    Args:
        step: number of steps already done, 0 for the first.

    Raises:
        RewardError: the reward failed on every response of the step.
    """
    cfg, roles = run.cfg, run.roles
    score_at_end = run.method.sampling_rounds > 1 or cfg.deterministic
    streamed: list[tuple[int, RewardedGroup]] = []

    def score(groups: list[RewardedGroup]) -> Awaitable[ScoredGroups]:
        return score_groups(run, step, groups)

    scoring = Coalescer(score)
    try:
        with run.log.timed("sample"):
            async for index, group in stream_groups(run, step):
                streamed.append((index, group))
                if not score_at_end:
                    scoring.add(group)
        groups = [group for _, group in sorted(streamed, key=lambda pair: pair[0])]
        report_reward_failures(run, step, groups)
        if score_at_end:
            for group in select_groups(run, step, groups):
                scoring.add(group)
        calls = await scoring.results()
    finally:
        scoring.cancel()
    scored = in_prompt_order(groups, [item for call in calls for item in call.scored])
    leakage: dict[str, float] = {}
    if leakage_probe.is_due(cfg, run.method, step):
        with run.log.timed("probe"):
            leakage = await leakage_probe.measure(
                cfg, run.method, roles.teacher, run.task.prompts, groups, scored, step
            )
    learnable = sum(map(signal_of(run, step), groups)) / len(groups)
    shown = context_shares(privileged_contexts(run, step).sources, [item.example for item in scored])
    return StepBatch(
        groups=groups,
        size=sum((call.size for call in calls), BatchSize(0, 0)),
        scored=scored,
        score_calls=[[item.id for item in call.scored] for call in calls],
        metrics={"rollout/groups_learnable_fraction": learnable}
        | leakage
        | shown
        | roles.rollouts.metrics()
        | roles.teacher.metrics(),
        recorded_ids=samples.choose_recorded(cfg, step, [rollout for group in groups for rollout in group.rollouts]),
    )


def context_shares(sources: Sequence[str], examples: Sequence[TrainingExample]) -> dict[str, float]:
    """Shares of the examples by the source of the teacher's solution, and of those with a cut text. Empty where no
    example has a teacher's prompt."""
    shown = [example for example in examples if example.source is not None]
    if not shown:
        return {}
    counts = Counter(example.source for example in shown)
    shares = {f"privileged/{source}_fraction": counts[source] / len(shown) for source in sources}
    return shares | {"privileged/cut_fraction": sum(example.cut for example in shown) / len(shown)}


def in_prompt_order(groups: Sequence[RewardedGroup], scored: Sequence[ScoredExample]) -> list[ScoredExample]:
    """The scored examples in the order of the groups' rollouts, not in the order of scoring."""
    by_id = {item.id: item for item in scored}
    return [by_id[rollout.id] for group in groups for rollout in group.rollouts if rollout.id in by_id]


def report_reward_failures(run: Run, step: int, groups: Sequence[RewardedGroup]) -> None:
    """Warn about the responses that the reward failed on, which are left out of the step, and about answers that it
    could not compare in time.

    Raises:
        RewardError: the reward failed on every response of the step.
    """
    if undecided := sum(group.undecided for group in groups):
        run.log.note(
            f"warning: {undecided} answers of step {step + 1} count as wrong: comparing or scoring failed, or took "
            "longer than limits.math_s or limits.reward_s"
        )
    errors = [error for group in groups for _, error in group.failures]
    if not errors:
        return
    message = f"{len(errors)} rewards of step {step + 1} are missing, the first because {errors[0]}"
    if not any(group.rollouts for group in groups):
        raise RewardError(f"All {message}")
    run.log.note(f"warning: {message}")


def select_groups(run: Run, step: int, groups: list[RewardedGroup]) -> list[RewardedGroup]:
    """The groups that the step trains on. A method with several sampling rounds may have sampled more than it needs;
    the ledger records the reason why each other group is dropped."""
    if run.method.sampling_rounds == 1:
        return groups
    can_learn_from = signal_of(run, step)
    usable = [group for group in groups if can_learn_from(group)]
    selected = usable[: run.cfg.rollout.prompts_per_step]
    for group in groups:
        if group not in selected:
            reason = DropReason.not_needed if group in usable else DropReason.no_example
            run.ledger.dropped(step + 1, [(rollout.prompt.id, rollout.sample) for rollout in group.rollouts], reason)
    return selected


async def score_groups(run: Run, step: int, groups: list[RewardedGroup]) -> ScoredGroups:
    """Make the examples of some groups, and score them with the teacher on the student's support."""
    batch = make_examples(run, groups, step)
    learned_ids = {example.id for example in batch.examples}
    without_example = [(r.prompt.id, r.sample) for group in groups for r in group.rollouts if r.id not in learned_ids]
    run.ledger.dropped(step + 1, without_example, DropReason.no_example)
    with run.log.timed("support"):
        supports = await run.roles.learners.support(batch.examples)
    with run.log.timed("score"):
        scored = await run.roles.teacher.score(batch.examples, supports, run.method.forwards)
    run.ledger.scored(step + 1, batch.examples)
    return ScoredGroups(batch.size, scored)


def make_examples(run: Run, groups: Sequence[RewardedGroup], step: int) -> DistillationBatch:
    """The method's training examples of some rewarded groups."""
    method = run.method
    if not method.shows_solutions:
        return examples_from_rewards(
            groups, scaled=method.scaled_advantage, drop_zero_advantage=method.drops_zero_advantage
        )
    prompts, contexts = run.task.prompts, privileged_contexts(run, step)
    if method.mix is not None:
        return examples_for_mixture(groups, prompts, contexts, method.mix, scaled=method.scaled_advantage)
    return examples_with_contexts(groups, prompts, contexts)


def pack_step(run: Run, state: RunState, batch: StepBatch) -> TrainBatch:
    """The scored examples of a step in token-balanced shards, one a learner rank.

    Digests of the step's tensors are requested where the state before the step is on disk, so that it can be replayed.
    """
    cfg = run.cfg
    shards = pack(
        batch.scored,
        batch.size,
        run.roles.learners.dp_size,
        cfg.learner.micro_batch_tokens,
        cfg.model.tree_tokens,
        record_ids=batch.recorded_ids,
    )
    replayable = cfg.checkpoint.replayable and run.is_saved(state)
    return replace(
        shards,
        learning_rate_factor=run.alarm.learning_rate_factor,
        digest_request=DigestRequest() if replayable else None,
    )
