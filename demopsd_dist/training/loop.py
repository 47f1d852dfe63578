"""The training loop. It calls the four roles in turn and does not depend on Ray or on any engine."""

from __future__ import annotations

from demopsd_dist.training.checkpointing import save_if_due, save_if_stopped
from demopsd_dist.training.evaluation_splits import evaluate_if_due, evaluate_splits
from demopsd_dist.training.probes.drift import keep_initial_responses
from demopsd_dist.training.run import Run, RunState
from demopsd_dist.training.step_batch import pack_step, step_batches
from demopsd_dist.training.step_records import record_step, recorded_operations


async def train(run: Run, state: RunState) -> RunState:
    """Train from `state` until cfg.steps steps are done or a stop is requested."""
    cfg, roles, log = run.cfg, run.roles, run.log
    with log.timed("publish_weights"):
        await roles.weights.publish(state.version)
    if cfg.evaluation.at_start and state.step == 0:
        await evaluate_splits(run, state)
    # batches are at most rollout.ahead weight versions behind; 0 is on-policy
    async with recorded_operations(run, state) as recording, step_batches(run, state) as queue:
        log.start_steps()
        while state.step < cfg.steps and not run.stop.requested:
            with log.timed("wait_for_rollouts"):  # sample -> reward -> score, overlapped by group
                batch = await run.stop.until_stopped(queue.next_batch())
            if batch is None:
                break
            await keep_initial_responses(run, state, batch)
            await run.on_stage("learn", state.step + 1, batch)
            train_batch = pack_step(run, state, batch)
            with log.timed("learn"):
                report = await roles.learners.step(train_batch)  # the method's loss, backward, ZeRO step
            state = state.after(samples=len(batch.rollouts))
            run.ledger.trained(state.step, [item.example for item in train_batch.items], samples=len(batch.rollouts))
            with log.timed("publish_weights"):
                await roles.weights.publish(state.version, changed=report.stepped)
            await recording.between_steps(state)
            queue.start_next()  # its prompts are sampled with these weights
            await record_step(run, state, batch, report)
            await evaluate_if_due(run, state)
            await save_if_due(run, state)
    await save_if_stopped(run, state)
    await evaluate_splits(run, state)
    return state
