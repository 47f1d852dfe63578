"""Runs through hundreds of random faults on simulated engines, in one process. No figure here measures an engine.

Real: the driver, the dispatch of prompts, the supervision and replacement of workers, the ledger, the checkpoints and
the resume. Simulated: the processes. An actor is an object, its death an error, and a killed driver one whose run is
dropped at once, without a line in the ledger.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from rich.console import Console

from benchmarks.chaos.faulty_roles import (
    SILENCE_S,
    DriverKilledError,
    FaultPlan,
    FaultyLearners,
    FaultyTeacher,
    FaultyWeights,
    LocalPool,
)
from benchmarks.common.simulated_roles import StageTimes
from benchmarks.common.timed_runs import DEMO, task_of
from demopsd_dist.config import Config, load
from demopsd_dist.run_record.audit import AuditReport, audit
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.training.checkpointing import restore
from demopsd_dist.training.recovery import train_with_recovery
from demopsd_dist.training.roles import Roles
from demopsd_dist.training.run import RunState, Task
from launch._task import compose_run
from workers.rollout.group import RolloutGroup

AT_ONCE = StageTimes(group_s=0, deviation=0, score_s=0, learn_s=0, publish_s=0)
WORDS = (
    "rollout.num_workers=3",
    "rollout.prompts_per_step=6",
    "rollout.group_size=4",
    "data.minisci_train_size=64",
    "data.test=null",
    "data.ood=null",
    "leakage.every_steps=0",
    "samples.every_steps=0",
    "checkpoint.every_steps=3",
    "checkpoint.keep=3",
    f"limits.silence_s={SILENCE_S}",
    "limits.attempts=100",  # random faults may hit the same prompt several times
    "limits.restarts=100",
)


@dataclass
class FaultRun:
    """Result of a run through random faults.

    Attributes:
        planted: number of faults by kind.
        learned: samples and privileged contexts of each step.
        seconds: time of the whole run, over all its resumes.
    """

    seed: int
    planted: Counter[str]
    audit: AuditReport
    learned: dict[int, list[tuple[str, bytes]]]
    seconds: float


def fault_task() -> Task:
    """Questions and reward of the simulated runs."""
    return task_of(load(DEMO, WORDS))


def run_with_faults(faults: int, seed: int, task: Task, output: Path, steps: int, ahead: int = 0) -> FaultRun:
    """Train through up to `faults` random faults, and resume whenever the driver is killed.

    Raises:
        TimeoutError: the run hangs.
    """
    started = time.monotonic()
    words = [*WORDS, f"steps={steps}", f"rollout.ahead={ahead}", f"output_dir={output}", f"name=seed-{seed}"]
    config = load(DEMO, words)
    folder = RunFolder.create(config)
    plan = FaultPlan(random.Random(seed), faults)
    learned: dict[int, list[tuple[str, bytes]]] = {}
    while not asyncio.run(asyncio.wait_for(_run_until_killed(config, folder, task, plan, learned), 600)):
        pass
    return FaultRun(seed, plan.planted, audit(folder), learned, time.monotonic() - started)


async def _run_until_killed(
    config: Config, folder: RunFolder, task: Task, plan: FaultPlan, learned: dict[int, list[tuple[str, bytes]]]
) -> bool:
    """Start or resume the run: True at its end, False where the driver was killed."""
    pool = LocalPool(config, folder.path, random_weights=True, say=lambda text: None)
    pool.plan = plan
    weights = FaultyWeights(pool)
    pool.sync_new_worker = weights.sync_new_worker
    learners = FaultyLearners(AT_ONCE, plan=plan, checkpoints=folder.checkpoints, learned=learned)

    async def restart() -> None:
        learners.steps = 0

    pool.let_engines_start()
    await pool.start()
    teacher = FaultyTeacher(AT_ONCE, examples_per_step=1, plan=plan)
    roles = Roles(RolloutGroup(pool, config), teacher, learners, weights, restart)
    with RunLog(folder, config.steps, Console(file=StringIO())) as log:
        run = compose_run(config, roles, task, log)
        state = RunState()
        if folder.metrics.stat().st_size:
            state = await restore(run, run.checkpoints.newest_good(log.note))
        try:
            await train_with_recovery(run, state, f"life after step {state.step}")
        except DriverKilledError:
            return False
        finally:
            pool.stop()
        run.ledger.close()
    return True
