"""Records of a finished step: samples, replay batch, metrics line, timeline and the check for collapse."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict

from demopsd_dist.config import AlarmAction, Config, WeightSource, to_yaml
from demopsd_dist.data.examples import RewardedGroup
from demopsd_dist.data.mixture import MixedPrompts
from demopsd_dist.data.packing import RowLayout, layout_by_question
from demopsd_dist.data.records import Prompt, StepReport, Tokens, TrainingExample, forward_input
from demopsd_dist.data.rewards.no_reward_notice import notice
from demopsd_dist.methods import Forwards, SupportKind
from demopsd_dist.run_record import digests, replay_batch, samples
from demopsd_dist.run_record.folder import replace_text
from demopsd_dist.run_record.profiling import operations
from demopsd_dist.run_record.profiling.timeline import Track, to_json, trace_events
from demopsd_dist.training.collapse import repeated_fraction
from demopsd_dist.training.probes.drift import measure_drift
from demopsd_dist.training.run import Run, RunState, StageSpeed
from demopsd_dist.training.step_batch import StepBatch
from demopsd_dist.util.errors import CollapseError, GoBackError


async def record_step(run: Run, state: RunState, batch: StepBatch, report: StepReport) -> None:
    """Write all records of a step to the run folder, then check its metrics for collapse, and the first for rewards.

    Raises:
        CollapseError, GoBackError: see `check_collapse`.
        RunFolderError: a record cannot be written.
    """
    await run.on_stage("record", state.step, report)
    record_samples(run, state, batch, report)
    record_replay_batch(run, state, batch, report)
    by_set = set_metrics(run.task.train, batch.groups)
    used = {}
    if run.speed is not None:
        used = stage_utilisation(run.speed, run.cfg, run.method.forwards, batch, run.log.step_stage_s)
    moved = await measure_drift(run, state)
    run.log.write_step(state.step, step_metrics(batch, state) | by_set | report.metrics | used | moved)
    notify_without_reward(run, state, batch)
    await record_timeline(run, state)
    check_collapse(run, state)


def notify_without_reward(run: Run, state: RunState, batch: StepBatch) -> None:
    """Log a notice after the second step, or the last of a shorter run, if every reward so far was 0."""
    if state.step != min(2, run.cfg.steps) or run.log.totals.rewarded:
        return
    for line in notice(batch.rollouts, run.task.reward, run.cfg.rollout.max_response_tokens, state.step):
        run.log.note(line)


def record_samples(run: Run, state: RunState, batch: StepBatch, report: StepReport) -> None:
    """Write the step's recorded rollouts to the run folder, and show one of them in the live view."""
    if batch.recorded_ids:
        with run.log.timed("samples"):
            tokenizer = run.task.prompts.tokenizer
            rows = samples.sample_rows(
                run.cfg, state.step, batch.recorded_ids, batch.groups, batch.scored, report.token_records, tokenizer
            )
            samples.write(run.log.folder.samples, state.step, rows)
            run.log.show_sample(rows[0])


def record_replay_batch(run: Run, state: RunState, batch: StepBatch, report: StepReport) -> None:
    """Write the step's inputs and the digests of its tensors, where the learners computed digests."""
    if not report.digests:
        return
    with run.log.timed("replay"):
        checkpoint = run.checkpoints.at(state.step - 1)
        record = replay_batch.ReplayRecord(
            step=state.step,
            config=to_yaml(run.cfg),
            checkpoint=None if checkpoint is None else checkpoint.digest(),
            size=asdict(batch.size),
            learning_rate_factor=run.alarm.learning_rate_factor,
            metrics=report.metrics,
            digests=digests.step_digests(batch.scored, report),
            surroundings=replay_batch.code_versions(),
        )
        replay_batch.write(run.log.folder.replay, record, batch.examples, batch.score_calls)


async def record_timeline(run: Run, state: RunState) -> None:
    """Write the spans of driver and workers in this step, where `profile.steps` names it."""
    if state.step not in run.cfg.profile.steps:
        return
    start_s, end_s = run.log.last_step_s
    tracks = [Track("driver", run.log.spans.since(start_s)), *await run.roles.profiling.tracks(start_s)]
    path = run.log.folder.trace(state.step)
    replace_text(path, to_json(trace_events(tracks, state.step, start_s, end_s)))
    run.log.note(f"timeline of step {state.step} in {path}: open it in ui.perfetto.dev")


class OperationRecording:
    """Recording of torch's operations in the steps of `profile.steps`, where `profile.operations` is set."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._recorded_step: int | None = None

    async def between_steps(self, state: RunState) -> None:
        """Write the operations of the step that has ended, if they were recorded, and start to record the next."""
        settings, profiling = self._run.cfg.profile, self._run.roles.profiling
        if self._recorded_step == state.step:
            self._recorded_step = None
            processes, folder = await profiling.operations(), self._run.log.folder.operations(state.step)
            operations.write(folder, state.step, processes)
            names = ", ".join(one.process for one in processes) or "no process, since none answered"
            self._run.log.note(f"operations of torch in step {state.step} in {folder}: {names}")
        if settings.operations and state.step + 1 in settings.steps:
            await profiling.start_operations()
            self._recorded_step = state.step + 1

    def stop(self) -> None:
        """Drop a recording that is not written."""
        if self._recorded_step is not None:
            self._run.roles.profiling.stop_operations()


@asynccontextmanager
async def recorded_operations(run: Run, state: RunState) -> AsyncIterator[OperationRecording]:
    """Context of the steps from `state` on, in which operations are recorded."""
    recording = OperationRecording(run)
    try:
        await recording.between_steps(state)
        yield recording
    finally:
        recording.stop()


def check_collapse(run: Run, state: RunState) -> None:
    """Check the metrics of the last step, and act as `alarm.action` says if they are out of their bands.

    Raises:
        CollapseError: the run must stop.
        GoBackError: the run must return to a checkpoint.
    """
    verdict = run.alarm.check(state.step, run.log.totals.last)
    if verdict is None:
        return
    if verdict.action is AlarmAction.stop:
        raise CollapseError(verdict.message)
    if verdict.action is AlarmAction.rollback:
        raise GoBackError(verdict.message, verdict.since)
    run.log.note(f"warning: {verdict.message}")


def step_metrics(batch: StepBatch, state: RunState) -> dict[str, float]:
    """The driver's metrics of a step: rewards, lengths and ages of its rollouts. `state` is that after the step."""
    rollouts = batch.rollouts
    tokens = [len(rollout.tokens_T) for rollout in rollouts]
    return {
        "rollout/reward_mean": sum(sum(group.rewards) for group in batch.groups) / len(rollouts),
        "rollout/response_tokens_mean": sum(tokens) / len(rollouts),
        "rollout/truncated_fraction": sum(rollout.truncated for rollout in rollouts) / len(rollouts),
        "rollout/repeated_fraction": sum(repeated_fraction(rollout.tokens_T) for rollout in rollouts) / len(rollouts),
        "rollout/samples": float(len(rollouts)),
        "rollout/tokens": float(sum(tokens)),
        "rollout/groups_differing_fraction": sum(group.has_signal for group in batch.groups) / len(batch.groups),
        "rollout/learned_fraction": len(batch.scored) / len(rollouts),
        "rollout/learned_tokens": float(sum(example.response_length_tokens for example in batch.examples)),
        "rollout/reward_errors": float(sum(len(group.failures) for group in batch.groups)),
        "rollout/undecided": float(sum(group.undecided for group in batch.groups)),
        "rollout/groups": float(len(batch.groups)),
        "policy/age_steps_max": float(state.step - 1 - min(rollout.oldest_version for rollout in rollouts)),
        "policy/age_steps_mean": state.step - 1 - sum(int(r.version_T.sum()) for r in rollouts) / sum(tokens),
        **batch.metrics,
    }


def set_metrics(prompts: Sequence[Prompt], groups: Sequence[RewardedGroup]) -> dict[str, float]:
    """Number of questions and mean reward of each of several training sets; sets without a response have no reward."""
    if not isinstance(prompts, MixedPrompts):
        return {}
    metrics: dict[str, float] = {}
    for name in prompts.sets:
        rewards = [group.rewards for group in groups if prompts.set_of(group.prompt) == name]
        metrics[f"train_set/groups_{name}"] = float(len(rewards))
        if values := [value for of_group in rewards for value in of_group]:
            metrics[f"train_set/reward_mean_{name}"] = sum(values) / len(values)
    return metrics


ROLE_OF = {"sample": "rollout", "support": "learner", "score": "teacher", "learn": "learner"}


def stage_utilisation(
    speed: StageSpeed, config: Config, forwards: Forwards, batch: StepBatch, stage_s: Mapping[str, float]
) -> dict[str, float]:
    """Utilisation of the stages that the step had, as `perf/{stage}_utilisation`.

    Args:
        stage_s: seconds of the driver in each stage of the step. Stages overlap, and with `rollout.ahead` those of the
            next step fall into it.
    """
    examples, tree_tokens = batch.examples, config.model.tree_tokens
    predicted = sum(example.response_length_tokens for example in examples)
    student = speed.forward(row_tokens(examples, tree_tokens, None), predicted)
    shown = [example for example in examples if len(example.privileged_tokens)]
    privileged = speed.forward(
        row_tokens(shown, tree_tokens, lambda example: example.privileged_tokens),
        sum(example.response_length_tokens for example in shown),
    )
    sampled = sum(len(rollout.tokens_T) for rollout in batch.rollouts)
    prompts = sum(len(group.prompt.tokens) for group in batch.groups)  # of several responses it is computed once
    operations = {
        "sample": speed.forward(prompts + sampled, sampled),
        "support": student if forwards.support is SupportKind.student else 0.0,
        "score": _runs(forwards.reference) * student + _runs(forwards.teacher) * privileged,
        "learn": speed.learn_passes * student,
    }
    return {
        f"perf/{stage}_utilisation": count / (stage_s[stage] * speed.peaks[ROLE_OF[stage]])
        for stage, count in operations.items()
        if count and stage_s.get(stage) and speed.peaks.get(ROLE_OF[stage])
    }


def row_tokens(
    examples: Sequence[TrainingExample], tree_tokens: int, prompt_of: Callable[[TrainingExample], Tokens] | None
) -> int:
    """Tokens of all rows, with the prompt of the student, or another; common prefixes of a question's responses count
    once."""
    layout: RowLayout[TrainingExample] = layout_by_question(lambda example: example, tree_tokens)
    if prompt_of is not None:
        layout = RowLayout(
            layout.group_of, lambda example: forward_input(prompt_of(example), example.response_T), tree_tokens
        )
    return sum(row.tokens for row in layout.rows(examples))


def _runs(source: WeightSource | None) -> int:
    """Number of models that a forward with weights of this source runs."""
    return {None: 0, WeightSource.trust_region: 2}.get(source, 1)
