"""Session of a training run: start or resume, training, summary and report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demopsd_dist.config import Config, to_yaml
from demopsd_dist.data.sources import LoadedData, describe_sources
from demopsd_dist.planning.model_shape import shape_of
from demopsd_dist.report import write_report
from demopsd_dist.run_record.checkpoints import Checkpoints
from demopsd_dist.run_record.folder import RunFolder, replace_text
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.run_record.run_inputs import write_inputs
from demopsd_dist.run_record.sinks import open_sinks
from demopsd_dist.training.checkpointing import restore
from demopsd_dist.training.recovery import train_with_recovery
from demopsd_dist.training.resume_point import RunStart
from demopsd_dist.training.run import Run, RunState, StageSpeed, Task
from demopsd_dist.util.errors import ConfigError, EngineStartError, one_line
from launch._data_shown import example_lines, own_answer_lines
from launch._export import export_student, refuse_bad_export
from launch._scaling import scaled_on_request
from launch._stopping import stopped_by_signals
from launch._task import NO_STEPS, build_task, compose_run, over_long, provenance
from workers.actors import RayActors
from workers.cluster import session
from workers.cluster.placement import summary_of_roles
from workers.cluster.ray_watch import ended_process, ended_with_ray
from workers.learner.extensions import ensure_extensions, extensions_folder


def run(
    config: Config,
    model: Path,
    data: LoadedData,
    inputs: Mapping[str, str],
    start: RunStart | None,
    notes: Sequence[str] = (),
    show_whole: bool = False,
    open_log: Callable[..., RunLog] = RunLog,
) -> bool:
    """Train from the start or the resume point to the summary. False where the run was asked to stop before its end.

    Args:
        notes: lines for the log, such as the precision that was chosen.
        show_whole: the log has the examples of the data without cuts.
        open_log: makes the log from folder, number of steps and sinks.
    """
    started = time.monotonic()
    task, skipped = build_task(config, model, data.questions)
    checked = own_answer_lines(task, data.splits)
    if start is None:
        start = RunStart(RunFolder.create(config))
        write_inputs(start.folder, inputs)
    with start.folder.locked(), open_log(start.folder, config.steps, sinks=open_sinks(config, start.folder)) as log:
        log.skipped = {str(split): count for split, count in skipped.items()}
        log.withheld = {str(split) for split, loaded in data.splits.items() if loaded.withheld}
        log_inputs(log, config, data)
        for line in [*notes, *checked, *example_lines(config, task, data, show_whole)]:
            log.note(line)
        for key, (old, new) in start.changed.items():
            log.note(f"changed    {key}: {old} -> {new}")
        if start.changed:
            replace_text(start.folder.config, to_yaml(config))
            write_inputs(start.folder, inputs)
        summary = asyncio.run(train_with_ray(config, model, task, log, start, started))
        if summary is None:
            log.note(f"stopped after step {log.last_step} of {config.steps}; the same command with --resume continues")
            return False
        start.folder.write_summary(summary | data.summary())
        log.note(f"student in {start.folder.student}   figures in {start.folder.path / 'summary.json'}")
        if config.sinks.report:
            write_final_report(start.folder, log.note)
        log.note(closing_line(summary))
        if summary.get("active_fraction") == 0:
            log.note("warning: no step had anything to learn from; the student is the initial model")
        newest = Checkpoints(start.folder.checkpoints, config.checkpoint.keep).at(log.last_step)
        refuse_bad_export(summary["export"], start.folder.student, newest.path if newest else None)
    return True


def write_final_report(folder: RunFolder, note: Callable[[str], None]) -> None:
    """Write the report of a run that is done. A failure is a line of the log: the report can be written again."""
    try:
        note(f"report in {write_report([folder.path], folder.report)}: open it in a browser")
    except Exception as error:
        note(
            f"warning: the report could not be written ({type(error).__name__}: {one_line(str(error))}). The run "
            f"is complete; write the report again with: demopsd report {folder.path}"
        )


def log_inputs(log: RunLog, config: Config, data: LoadedData) -> None:
    """Log run folder, seed, model, data sources and the questions left out."""
    path = log.folder.path
    other = "" if path.name == config.name else f" ({path.with_name(config.name)} is an earlier run)"
    log.note(f"run folder {path}{other}   seed {config.seed}   model {config.model.path}")
    if config.steps == 0:
        log.note(NO_STEPS)
    if config.model.template_date is not None:
        log.note(f"the chat template shows {config.model.template_date} as today's date (model.template_date)")
    loaded = [
        f"{split} {source} ({len(data.questions[split])})"
        for split, source in describe_sources(config.data).items()
        if source
    ]
    log.note("data       " + "   ".join(loaded))
    for line in data.notes():
        log.note(line)
    for split, questions in data.questions.items():
        if left_out := log.skipped.get(str(split)):
            log.note(f"left out {left_out} of {len(questions)} {split} questions: {over_long(config, split)}")


async def train_with_ray(
    config: Config, model: Path, task: Task, log: RunLog, start: RunStart, started: float
) -> dict[str, Any] | None:
    """Start the roles, train and export the student; the summary, or None where the run was asked to stop."""
    if config.ray_address is None and not config.learner.gpus_per_worker:
        with log.timed("start_roles"):
            ensure_extensions(extensions_folder(), log.note)
    session.join(config)  # disconnected by `fenced`, within a time limit
    async with ended_with_ray():
        log.note(f"starting {summary_of_roles(config)}; loading their libraries takes most of the time")
        with log.timed("start_roles"), start_errors_in(log.folder):
            actors = RayActors(config, model, log.note)
            roles = await actors.start()
        ready_s = time.monotonic() - started
        log.note(f"roles ready after {ready_s:.0f} s: {summary_of_roles(config)}; weights by {actors.transport}")
        speed = await measure_stage_speed(config, model, actors, log.note)
        run = compose_run(config, roles, task, log, speed=speed)
        try:
            state = await train_until_stopped(run, actors, start)
            if state is None:
                return None
            exported = await export_student(run, actors, state)
            forwards = await actors.forward_counts()
        finally:
            if ended_process() is None:  # a call to Ray would wait for the process that has ended
                actors.stop()
            run.ledger.close()
    return {
        **log.summary(),
        "wall_s": round(time.monotonic() - started, 1),
        "method": config.method.value,
        "forwards": forwards,
        "export": exported,
        "model": config.model.path,
        "data": describe_sources(config.data),
        **provenance(config),
    }


async def measure_stage_speed(
    config: Config, folder: Path, actors: RayActors, note: Callable[[str], None]
) -> StageSpeed | None:
    """Measure the peak of each role, unless `profile.peak_tflops` gives it; None where it is of no use, which the log
    says: the sizes of the model's layers are not known."""
    try:
        shape = shape_of(str(folder))
    except ConfigError as error:
        note(f"no perf/*_utilisation: {error}")
        return None
    given = config.profile.peak_tflops
    if given is None:
        peaks = await actors.peaks()
    else:
        peaks = {role: given * 1e12 * actors.devices(role) for role in actors.groups}
    listed = ", ".join(f"{role} {peak / 1e12:.3g}" for role, peak in peaks.items())
    origin = "measured" if given is None else "profile.peak_tflops"
    note(f"peak of matrix products, 1e12 operations/s ({origin}): {listed}; perf/*_utilisation are shares of it")
    # adapters have hardly any weights of their own, so their backward has no product for gradients of weights
    passes = 2.0 if config.model.lora_rank else 3.0
    return StageSpeed(2.0 * shape.active, 2.0 * shape.head, passes, peaks)


@contextmanager
def start_errors_in(folder: RunFolder) -> Iterator[None]:
    """Write the full text of an engine's failed start to a file of the run folder, and name the file in the error."""
    try:
        yield
    except EngineStartError as error:
        path = folder.start_error(error.rank)
        path.parent.mkdir(exist_ok=True)
        replace_text(path, error.full_text)
        raise EngineStartError(f"{str(error).rstrip('.')}. The full text is in {path}.") from None


async def train_until_stopped(run: Run, actors: RayActors, start: RunStart) -> RunState | None:
    """Train to the last step, following signals and `launch.scale`; the state there, or None where the run was asked to
    stop."""
    note, limit_s = run.log.note, run.cfg.limits.stop_s
    with stopped_by_signals(run.stop, limit_s, note):
        try:
            async with scaled_on_request(run.log.folder, actors.pool, note):
                last_state = await train_with_recovery(run, *await first_state(run, start))
        except asyncio.CancelledError:
            if not run.stop.requested:
                raise
            note(f"warning: not done within limits.stop_s={limit_s:g} s: the step is dropped")
        return None if run.stop.requested else last_state


async def first_state(run: Run, start: RunStart) -> tuple[RunState, str]:
    """State to train from, with the reason for the ledger: a new one, or that of the checkpoint to resume from."""
    if not start.resumes:
        return RunState(), "started"
    checkpoint = start.checkpoint or run.checkpoints.newest_good(run.log.note)
    state = await restore(run, checkpoint)
    reason = f"resumed after step {state.step}"
    run.log.note(reason)
    return state, reason


def closing_line(summary: dict) -> str:
    """Accuracy and entropy before and after, as the last line of the log."""
    if "accuracy_after" not in summary:
        return f"done in {summary['wall_s']:.0f} s"
    if "accuracy_before" not in summary:
        return f"accuracy {summary['accuracy_after']['average']:.1%}   in {summary['wall_s']:.0f} s"
    before, after = summary["accuracy_before"], summary["accuracy_after"]
    line = f"accuracy {before['average']:.1%} -> {after['average']:.1%}"
    if "ood" in before:
        line += f"   out of distribution {before['ood']:.1%} -> {after['ood']:.1%}"
    line += f"   entropy {summary['entropy_before']:.3f} -> {summary['entropy_after']:.3f}"
    return f"{line}   in {summary['wall_s']:.0f} s"
