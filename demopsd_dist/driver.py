"""The loop: sample, score, learn, publish. It knows the roles and the data, never what is behind them."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from demopsd_dist import probe, samples
from demopsd_dist.behaviour import ANSWER_OPEN, forced_to_answer
from demopsd_dist.config import Config
from demopsd_dist.data.lessons import Group, Lessons, lessons_from_rewards, lessons_from_siblings
from demopsd_dist.data.pack import pack
from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import BatchSize, LearnReport, Prompt, Rollout, Scored, TrainBatch
from demopsd_dist.data.rewards import Reward
from demopsd_dist.evaluate import evaluate
from demopsd_dist.feed import Feed, open_feed
from demopsd_dist.methods import recipe
from demopsd_dist.roles import Crew, Sampling
from demopsd_dist.runlog import RunLog
from demopsd_dist.sampling import evaluation_sampling, learned_groups, step_groups
from demopsd_dist.scoring import InTurn


@dataclass(frozen=True)
class RunState:
    """Where a run stands. `step` counts the training steps done and is the version of the learners' weights."""

    step: int = 0
    samples: int = 0

    @property
    def version(self) -> int:
        return self.step

    def after(self, samples: int) -> RunState:
        return replace(self, step=self.step + 1, samples=self.samples + samples)


@dataclass(frozen=True)
class Task:
    """What to learn and how to mark it."""

    train: Sequence[Prompt]
    test: Sequence[Prompt]
    ood: Sequence[Prompt]
    prompts: PromptBuilder
    reward: Reward


@dataclass(frozen=True)
class ScoredGroups:
    """What came of some groups of a step."""

    size: BatchSize
    scored: list[Scored]


@dataclass(frozen=True)
class ScoredRollouts:
    """The rollouts of one step, rewarded, and the scored lessons among them."""

    groups: list[Group]
    size: BatchSize
    scored: list[Scored]
    figures: dict[str, float]  # of the leakage probe, where it was due, and of the workers
    kept: list[str]  # ids of the rollouts that go on record

    @property
    def rollouts(self) -> list[Rollout]:
        return [rollout for group in self.groups for rollout in group.rollouts]


async def train(cfg: Config, crew: Crew, task: Task, log: RunLog, state: RunState) -> RunState:
    """Sample, score, learn, publish -- until cfg.steps steps are done."""
    with log.timed("publish_weights"):
        await crew.weights.publish(state.version)
    if cfg.evaluation.at_start:
        await evaluate_all(cfg, crew, task, log, state)
    async with scored_rollouts(cfg, crew, task, log, state) as feed:  # ahead=0: on-policy
        log.training_starts()
        while state.step < cfg.steps:
            with log.timed("wait_for_rollouts"):
                rollouts = await feed.take()  # rollout workers sampled, teacher scored
            batch = packed(cfg, rollouts, crew.learners.dp_size)
            with log.timed("learn"):
                report = await crew.learners.step(batch)  # the method's loss, backward, ZeRO step
            state = state.after(samples=len(rollouts.rollouts))
            with log.timed("publish_weights"):
                await crew.weights.publish(state.version, moved=report.stepped)
            feed.admit()  # the next prompts are born on these weights
            keep_samples(cfg, task, log, state, rollouts, report)
            log.step(state.step, step_metrics(rollouts, state) | report.metrics)
            if cfg.evaluation.every_steps and state.step % cfg.evaluation.every_steps == 0 and state.step < cfg.steps:
                await evaluate_all(cfg, crew, task, log, state)
    await evaluate_all(cfg, crew, task, log, state)
    return state


def scored_rollouts(
    cfg: Config, crew: Crew, task: Task, log: RunLog, state: RunState
) -> AbstractAsyncContextManager[Feed[ScoredRollouts]]:
    """The feed of the loop: each step's prompts sampled, graded, and its lessons scored by the teacher."""

    async def produce(step: int) -> ScoredRollouts:
        rounds = recipe(cfg).sampling_rounds
        places: dict[str, int] = {}
        found: dict[int, Group] = {}

        def score(groups: list[Group]) -> Awaitable[ScoredGroups]:
            return score_groups(cfg, crew, task, log, step, groups)

        scoring = InTurn(score)
        try:
            with log.timed("sample"):
                async for place, group in step_groups(cfg, crew.rollouts, task.train, task.reward, step):
                    found[place], places[group.prompt.id] = group, place
                    if rounds == 1:
                        scoring.add(group)  # while others are still sampled
            groups = [found[place] for place in sorted(found)]
            if rounds > 1:
                for group in learned_groups(cfg, groups):
                    scoring.add(group)
            parts = await scoring.results()
        finally:
            scoring.cancel()
        scored = [item for part in parts for item in part.scored]
        scored.sort(key=lambda item: (places[item.lesson.rollout.prompt.id], item.lesson.rollout.sample))
        size = sum((part.size for part in parts), BatchSize(0, 0))
        leakage: dict[str, float] = {}
        if probe.due(cfg, step):
            with log.timed("probe"):
                leakage = await probe.measure(cfg, crew.teacher, task.prompts, groups, scored)
        figures = leakage | crew.rollouts.figures() | crew.teacher.figures()
        kept = samples.drawn(cfg, step, [rollout for group in groups for rollout in group.rollouts])
        return ScoredRollouts(groups, size, scored, figures, kept)

    return open_feed(produce, first_step=state.step, last_step=cfg.steps, ahead=cfg.rollout.ahead)


async def score_groups(
    cfg: Config, crew: Crew, task: Task, log: RunLog, step: int, groups: list[Group]
) -> ScoredGroups:
    taught = lessons_of_step(cfg, task, groups, step)
    with log.timed("support"):
        supports = await crew.learners.support(taught.lessons)
    with log.timed("score"):
        scored = await crew.teacher.score(taught.lessons, supports, recipe(cfg).forwards)
    return ScoredGroups(taught.size, scored)


def packed(cfg: Config, rollouts: ScoredRollouts, dp_size: int) -> TrainBatch:
    learner, model = cfg.learner, cfg.model
    return pack(
        rollouts.scored, rollouts.size, dp_size, learner.micro_batch_tokens, model.tree_tokens, told=rollouts.kept
    )


def keep_samples(
    cfg: Config, task: Task, log: RunLog, state: RunState, step: ScoredRollouts, report: LearnReport
) -> None:
    """What goes on record of the step's rollouts: a file in the run folder, and one of them for the reader."""
    if step.kept:
        with log.timed("samples"):
            tokenizer = task.prompts.tokenizer
            rows = samples.rows_of(cfg, state.step, step.kept, step.groups, step.scored, report.tables, tokenizer)
            samples.write(log.folder.samples, state.step, rows)
            log.show(rows[0])


def lessons_of_step(cfg: Config, task: Task, groups: list[Group], step: int) -> Lessons:
    made = recipe(cfg)
    if not made.shows_solutions:
        return lessons_from_rewards(
            groups, scaled=made.scaled_advantage, leave_out_silent=made.silent_without_advantage
        )
    return lessons_from_siblings(
        groups,
        task.prompts,
        exclude_own_success=cfg.privileged.exclude_own_success,
        seed=f"{cfg.seed}/{step}",
        feedback=cfg.privileged.feedback,
    )


async def evaluate_all(cfg: Config, crew: Crew, task: Task, log: RunLog, state: RunState) -> None:
    """The same questions and the same random numbers at every evaluation, so that only the weights differ."""
    for split, prompts, sampling, begun in evaluated(cfg, task):
        if prompts:
            with log.timed("evaluate"):
                result = await evaluate(crew.rollouts, prompts, sampling, task.reward, begun)
            log.evaluation(state.step, split, result)


def evaluated(cfg: Config, task: Task) -> Iterator[tuple[str, Sequence[Prompt], Sampling, str]]:
    """What an evaluation looks at: name, prompts, how to sample, and how the responses are begun."""
    sampling = evaluation_sampling(cfg)
    yield "test", task.test, sampling, ""
    yield "ood", task.ood, sampling, ""
    if early := cfg.evaluation.early_answer_samples:
        for split, prompts in (("test", task.test), ("train", task.train[: len(task.test)])):
            begun = forced_to_answer(prompts, task.prompts.tokenizer)
            yield f"early/{split}", begun, replace(sampling, samples=early), ANSWER_OPEN


def step_metrics(step: ScoredRollouts, state: RunState) -> dict[str, float]:
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
        "rollout/groups": float(len(step.groups)),
        "policy/age_steps_max": float(state.step - 1 - min(rollout.oldest_version for rollout in rollouts)),
        "policy/age_steps_mean": state.step - 1 - sum(int(r.version_T.sum()) for r in rollouts) / sum(tokens),
        **step.figures,
    }
