"""Saving a run's state to a checkpoint and restoring it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from demopsd_dist.config import to_yaml
from demopsd_dist.run_record import replay_batch
from demopsd_dist.run_record.checkpoints import Checkpoint
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.training.run import Run, RunState
from demopsd_dist.util.errors import CheckpointError


async def save(run: Run, state: RunState) -> None:
    """Write a checkpoint with all state that this run cannot compute again."""
    content = {
        "run": run.log.folder.identity,
        "step": state.step,
        "samples": state.samples,
        "ledger_position": run.ledger.position,
        "config": to_yaml(run.cfg),
    }
    with run.log.timed("checkpoint"):
        async with run.checkpoints.writing(state.step, content) as folder:
            await run.on_stage("checkpoint", state.step, folder)
            await run.roles.learners.save(folder / "learner")
            await run.roles.teacher.save(folder / "teacher")
    saved_steps = {checkpoint.step for checkpoint in run.checkpoints.all()}
    replay_batch.remove_except(run.log.folder.replay, {1, *(step + 1 for step in saved_steps)})


async def save_if_due(run: Run, state: RunState) -> None:
    """Save after every `checkpoint.every_steps` steps, and after the last."""
    if run.is_due(run.cfg.checkpoint.every_steps, state):
        await save(run, state)


async def save_if_stopped(run: Run, state: RunState) -> None:
    """Save where a requested stop ended the run after a step that has no checkpoint."""
    if run.stop.requested and not run.is_saved(state):
        await save(run, state)


def refuse_other_run(folder: RunFolder, checkpoint: Checkpoint, content: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that was copied from another run. Checkpoints and runs without an identity pass.

    Raises:
        CheckpointError: checkpoint and run have different identities.
    """
    written_by = content.get("run")
    if written_by and folder.identity and written_by != folder.identity:
        raise CheckpointError(
            f"{checkpoint.path} is of another run: it has the identity {written_by}, the run in {folder.path} "
            f"{folder.identity}. Remove it, or resume the run that wrote it."
        )


async def restore(run: Run, checkpoint: Checkpoint | None) -> RunState:
    """Load learners, teacher and log from a checkpoint; without one, the state is that before step 1.

    Learners and teacher have just been started.

    Raises:
        CheckpointError: the checkpoint was written by another run.
    """
    state = RunState()
    if checkpoint is not None:
        content = checkpoint.state()
        refuse_other_run(run.log.folder, checkpoint, content)
        state = RunState(content["step"], content["samples"])
        await run.roles.learners.load(checkpoint.path / "learner")
        await run.roles.teacher.load(checkpoint.path / "teacher")
    # a run that was killed after a rollback has no checkpoint that knows of it, but a life in its ledger
    run.alarm.go_back(state.step, run.ledger.rollbacks)
    if run.alarm.rollbacks:
        factor = run.alarm.learning_rate_factor
        run.log.note(f"rollbacks so far: {run.alarm.rollbacks}; the learning rate is multiplied by {factor:g}")
    run.checkpoints.undo_after(state.step)
    run.log.roll_back(state.step)
    return state
