"""Training with recovery: a run that loses learners or teacher goes back to a checkpoint and continues."""

from __future__ import annotations

from demopsd_dist.run_record.ledger import WENT_BACK
from demopsd_dist.training.checkpointing import restore
from demopsd_dist.training.loop import train
from demopsd_dist.training.run import Run, RunState
from demopsd_dist.util.errors import GoBackError, LostStateError, WorkerError


async def train_with_recovery(run: Run, state: RunState, why: str) -> RunState:
    """Run `train`; after a lost learner or teacher, or a rollback of the collapse monitor, restore and run it again.

    Args:
        why: the reason that this part of the run begins, for the ledger.

    Raises:
        CollapseError: metrics are outside their bands, and the run must stop.
        WorkerError: learners or teacher were lost more than `limits.restarts` times without a new step in between;
            holds the message of each loss.
    """
    losses: list[str] = []
    furthest_step, lost, before_step = state.step, False, None
    while True:
        try:
            if lost:  # one that is lost again on the way counts like any other loss
                state = await restart_at_checkpoint(run, before_step)
                lost, before_step = False, None
            run.ledger.begin(state.step, why)
            return await train(run, state)
        except LostStateError as error:
            if run.log.last_step > furthest_step:
                furthest_step, losses = run.log.last_step, []
            losses.append(str(error))
            if len(losses) > run.cfg.limits.restarts:
                raise WorkerError(
                    f"learners or teacher were lost {len(losses)} times without a step beyond {furthest_step} "
                    f"(limits.restarts={run.cfg.limits.restarts}): " + "  ".join(losses)
                ) from None
            # a restart that fails belongs to its own cause: the ledger counts the lives after a rollback
            why, lost = f"{why}; then lost: {error}" if lost else f"lost: {error}", True
        except GoBackError as error:
            why, lost, before_step = f"{WENT_BACK}: {error}", True, error.first_bad_step
        run.log.note(f"warning: {why} Learners and teacher are restarted.")


async def restart_at_checkpoint(run: Run, before_step: int | None) -> RunState:
    """Restart learners and teacher with the state of the newest good checkpoint.

    Args:
        before_step: the checkpoint must be from before this step; None takes the newest.
    """
    with run.log.timed("recover"):
        await run.roles.restart()
        state = await restore(run, run.checkpoints.newest_good(run.log.note, before_step))
    run.log.note(f"continues after step {state.step}")
    return state
