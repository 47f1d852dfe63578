"""The loop: sample, score, learn, publish. It knows the roles and the data, never what is behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from demopsd_dist.config import AlarmAction, Config, to_yaml
from demopsd_dist.data.leakage_signs import ANSWER_OPEN, forced_to_answer
from demopsd_dist.data.packing import pack
from demopsd_dist.data.records import DigestRequest, Prompt, StepReport, TrainBatch
from demopsd_dist.run_record import digests, replay_batch, samples
from demopsd_dist.run_record.checkpoints import Checkpoint
from demopsd_dist.run_record.folder import replace_text
from demopsd_dist.run_record.timeline import Track, as_json, trace_of
from demopsd_dist.training.evaluate import evaluate
from demopsd_dist.training.roles import Sampling
from demopsd_dist.training.run import Run, RunState, Task
from demopsd_dist.training.step_batch import StepBatch, step_batches, step_metrics
from demopsd_dist.training.step_prompts import evaluation_sampling
from demopsd_dist.util.errors import CollapseError, GoBackError, LostStateError, WorkerError


async def train(run: Run, state: RunState) -> RunState:
    """Sample, score, learn, publish -- until cfg.steps steps are done, or the run is asked to stop."""
    cfg, roles, log = run.cfg, run.roles, run.log
    with log.timed("publish_weights"):
        await roles.weights.publish(state.version)
    saved = state.step
    if cfg.evaluation.at_start and state.step == 0:
        await run.stop.before(evaluate_all(run, state))
    async with step_batches(run, state) as queue:  # ahead=0: on-policy
        log.training_starts()
        while state.step < cfg.steps and not run.stop.asked:
            with log.timed("wait_for_rollouts"):
                rollouts = await run.stop.before(queue.take())  # rollout workers sampled, teacher scored
            if rollouts is None:
                break
            batch = packed(run, rollouts, replayable=cfg.checkpoint.replayable and saved == state.step)
            with log.timed("learn"):
                report = await roles.learners.step(batch)  # the method's loss, backward, ZeRO step
            state = state.after(samples=len(rollouts.rollouts))
            run.ledger.trained(state.step, [item.example for item in batch.items], len(rollouts.rollouts))
            with log.timed("publish_weights"):
                await roles.weights.publish(state.version, moved=report.stepped)
            queue.admit()  # the next prompts are born on these weights
            keep_samples(run, state, rollouts, report)
            keep_batch(run, state, rollouts, report)
            log.step(state.step, step_metrics(rollouts, state) | report.metrics)
            await keep_timeline(run, state)
            check_collapse(run, state)
            if due(cfg.evaluation.every_steps, state, cfg) and state.step < cfg.steps:
                await run.stop.before(evaluate_all(run, state))
            if due(cfg.checkpoint.every_steps, state, cfg):
                await save(run, state)
                saved = state.step
    if run.stop.asked and saved < state.step:
        await save(run, state)
    await run.stop.before(evaluate_all(run, state))
    return state


def check_collapse(run: Run, state: RunState) -> None:
    """
    Raises:
        CollapseError: figures of the last steps are outside their bands, and the run is to stop for it.
        GoBackError: or to go back.
    """
    verdict = run.alarm.look(state.step, run.log.steps[-1])
    if verdict is None:
        return
    if verdict.action is AlarmAction.stop:
        raise CollapseError(verdict.message)
    if verdict.action is AlarmAction.rollback:
        raise GoBackError(verdict.message, verdict.since)
    run.log.note(f"warning: {verdict.message}")


def due(every_steps: int, state: RunState, cfg: Config) -> bool:
    """After every so many steps, and after the last; 0 is never."""
    return every_steps > 0 and (state.step % every_steps == 0 or state.step == cfg.steps)


async def train_with_recovery(run: Run, state: RunState, why: str) -> RunState:
    """`train`, and where a learner or the teacher is lost, or the alarm says so, again from a good checkpoint.

    Raises:
        CollapseError: the alarm says that it is of no use.
        WorkerError: learners or teacher were lost `limits.restarts` times without a step further than before; tells of
            each.
    """
    lost: list[str] = []
    furthest = state.step
    while True:
        run.ledger.begin(state.step, why)
        try:
            return await train(run, state)
        except LostStateError as error:
            if run.log.last_step > furthest:
                furthest, lost = run.log.last_step, []
            lost.append(str(error))
            if len(lost) > run.cfg.limits.restarts:
                raise WorkerError(
                    f"learners or teacher were lost {len(lost)} times without a step beyond {furthest} "
                    f"(limits.restarts={run.cfg.limits.restarts}): " + "  ".join(lost)
                ) from None
            why, before = f"lost: {error}", None
        except GoBackError as error:
            why, before = f"went back: {error}", error.before
        run.log.note(f"warning: {why} Learners and teacher start anew.")
        with run.log.timed("recover"):
            await run.roles.restart()
            state = await restore(run, run.checkpoints.newest_good(run.log.note, before))
        run.log.note(f"goes on after step {state.step}")


async def save(run: Run, state: RunState) -> None:
    """Everything that this run cannot compute again."""
    told = {
        "step": state.step,
        "samples": state.samples,
        "ledger_position": run.ledger.position,
        "rollbacks": run.alarm.rollbacks,
        "config": to_yaml(run.cfg),
    }
    with run.log.timed("checkpoint"):
        async with run.checkpoints.writing(state.step, told) as folder:
            await run.roles.learners.save(folder / "learner")
            await run.roles.teacher.save(folder / "teacher")
    there = {checkpoint.step for checkpoint in run.checkpoints.all()}
    replay_batch.keep_only(run.log.folder.replay, {1, *(step + 1 for step in there)})


async def restore(run: Run, checkpoint: Checkpoint | None) -> RunState:
    """Learners, teacher and log as they were at the checkpoint; without one, as at the beginning.

    Learners and teacher have just been started.
    """
    state = RunState()
    if checkpoint is not None:
        told = checkpoint.state()
        state = RunState(told["step"], told["samples"])
        run.alarm.rollbacks = max(run.alarm.rollbacks, told["rollbacks"])
        await run.roles.learners.load(checkpoint.path / "learner")
        await run.roles.teacher.load(checkpoint.path / "teacher")
    run.checkpoints.undo_after(state.step)
    run.log.go_back(state.step)
    return state


def packed(run: Run, rollouts: StepBatch, replayable: bool) -> TrainBatch:
    learner, model, ranks = run.cfg.learner, run.cfg.model, run.roles.learners.dp_size
    batch = pack(
        rollouts.scored, rollouts.size, ranks, learner.micro_batch_tokens, model.tree_tokens, record_ids=rollouts.kept
    )
    return replace(
        batch, learning_rate_factor=run.alarm.learning_rate_factor, trace=DigestRequest() if replayable else None
    )


def keep_samples(run: Run, state: RunState, step: StepBatch, report: StepReport) -> None:
    """What goes on record of the step's rollouts: a file in the run folder, and one of them for the reader."""
    if step.kept:
        with run.log.timed("samples"):
            tokenizer = run.task.prompts.tokenizer
            rows = samples.rows_of(run.cfg, state.step, step.kept, step.groups, step.scored, report.tables, tokenizer)
            samples.write(run.log.folder.samples, state.step, rows)
            run.log.show(rows[0])


def keep_batch(run: Run, state: RunState, step: StepBatch, report: StepReport) -> None:
    """All that the step took in, and digests of what it computed, where the learners told them."""
    if not report.digests:
        return
    with run.log.timed("replay"):
        before = run.checkpoints.at(state.step - 1)
        record = replay_batch.ReplayRecord(
            step=state.step,
            config=to_yaml(run.cfg),
            checkpoint=None if before is None else before.digest(),
            size=asdict(step.size),
            learning_rate_factor=run.alarm.learning_rate_factor,
            metrics=report.metrics,
            digests=digests.of_step(step.scored, report),
            surroundings=replay_batch.surroundings(),
        )
        replay_batch.write(run.log.folder.replay, record, [item.example for item in step.scored], step.parts)


async def keep_timeline(run: Run, state: RunState) -> None:
    """What everybody was busy with during the step, where it is to be profiled."""
    if state.step not in run.cfg.profile.steps:
        return
    start_s, end_s = run.log.last_step_s
    tracks = [Track("driver", run.log.spans.since(start_s)), *await run.roles.tracks(start_s)]
    path = run.log.folder.trace(state.step)
    replace_text(path, as_json(trace_of(tracks, state.step, start_s, end_s)))
    run.log.note(f"timeline of step {state.step} in {path}: open it in ui.perfetto.dev")


async def evaluate_all(run: Run, state: RunState) -> None:
    """The same questions and the same random numbers at every evaluation, so that only the weights differ."""
    for split, prompts, sampling, begun in evaluated(run.cfg, run.task):
        if prompts:
            with run.log.timed("evaluate"):
                result = await evaluate(run.roles.rollouts, prompts, sampling, run.task.reward, begun)
            run.log.evaluation(state.step, split, result)


def evaluated(cfg: Config, task: Task) -> Iterator[tuple[str, Sequence[Prompt], Sampling, str]]:
    """What an evaluation looks at: name, prompts, how to sample, and how the responses are begun."""
    sampling = evaluation_sampling(cfg)
    yield "test", task.test, sampling, ""
    yield "ood", task.ood, sampling, ""
    if early := cfg.evaluation.early_answer_samples:
        for split, prompts in (("test", task.test), ("train", task.train[: len(task.test)])):
            begun = forced_to_answer(prompts, task.prompts.tokenizer)
            yield f"early/{split}", begun, replace(sampling, samples=early), ANSWER_OPEN
