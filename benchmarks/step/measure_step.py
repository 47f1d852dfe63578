"""Time of a step by stage, and the driver's own share of it: `python -m benchmarks.step [--workers 1 8 64] [--real]`

With simulated engines (the driver, the dispatch of prompts and Ray's actors are the real ones): the time that the
driver takes by itself, a step's time beside the sum of its stages, and the scaling of sampling with rollout workers.
With `--real`, a few steps of `configs/demo.yaml` on real engines and a timeline of one. Writes tables, raw figures and
a plot.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from benchmarks.common.results_files import RESULTS, save
from benchmarks.common.simulated_roles import (
    SimulatedLearners,
    SimulatedRollout,
    SimulatedTeacher,
    StageTimes,
    group_seconds,
    simulated_responses,
)
from benchmarks.common.timed_runs import DEMO, StepTimer, task_of, train_on_real_engines, train_timed
from benchmarks.step.step_page import plot_timeline, report
from demopsd_dist.config import Config, load
from demopsd_dist.data.examples import examples_from_rewards, reward_group
from demopsd_dist.run_record.ledger import Ledger
from demopsd_dist.testing import World, stand_in_roles
from demopsd_dist.training.roles import Roles
from demopsd_dist.training.step_prompts import prompts_of_step, train_sampling
from demopsd_dist.util.errors import LostWorkerError
from launch._processes import fenced
from workers.actor_group import ActorGroup
from workers.cluster import session
from workers.cluster.placement import Bundle
from workers.cluster.resource_claim import ResourceClaim
from workers.rollout.dispatch import RolloutWorkers
from workers.rollout.group import RolloutGroup
from workers.rollout.pool import FixedPool

GROUPS_AT_ONCE = 2  # in a simulated engine
GROUPS_PER_WORKER = 8  # of a step
SimulatedWorkers = ActorGroup[SimulatedRollout]
Row = dict[str, Any]


@dataclass
class SimulatedWeights:
    """Publisher that sleeps, and then marks the version in the rollout workers."""

    rollouts: SimulatedWorkers
    times: StageTimes
    published: list[int] = field(default_factory=list)

    async def publish(self, version: int, *, changed: bool = True) -> None:
        """Sleep as long as a publish takes, and mark the version."""
        await asyncio.sleep(self.times.publish_s)
        await self.rollouts.each(
            lambda worker, _: worker(SimulatedRollout.mark_version, version), within_s=60, what="a version"
        )
        self.published.append(version)


def driver_alone(steps: int) -> Row:
    """Samples/s with roles that answer at once: the work left is prompts, rewards, examples, packing and the log."""
    config = load(DEMO, [f"steps={steps}", "rollout.prompts_per_step=256", "evaluation.at_start=false"])
    at_once = StageTimes(group_s=0, deviation=0, score_s=0, learn_s=0, publish_s=0)
    roles = replace(
        stand_in_roles(World()),
        teacher=SimulatedTeacher(at_once, examples_per_step=1),
        learners=SimulatedLearners(at_once),
    )
    log = train_timed(config, roles, task_of(config))
    seconds = log.step_ends[-1] - log.step_ends[0]
    return {"samples_per_s": 256 * config.rollout.group_size * (steps - 1) / seconds}


async def no_restart() -> None:
    """Fail: simulated learners are never lost."""
    raise AssertionError("no worker dies in this benchmark")


def ledger_alone(steps: int) -> Row:
    """Cost of the ledger a sample, µs: all lines of a step in which every sample is trained, until they are on disk."""
    config = load(DEMO, ["rollout.prompts_per_step=256"])
    task, spent_s, samples = task_of(config), 0.0, config.rollout.group_size
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        ledger.begin(0, "started")
        for step in range(1, steps + 1):
            prompts = prompts_of_step(task.train, config, step - 1)
            groups = [simulated_responses(prompt, train_sampling(config, step), step - 1, 0) for prompt in prompts]
            examples = examples_from_rewards(
                [reward_group(group, task.reward) for group in groups], scaled=False, drop_zero_advantage=False
            ).examples
            began = time.monotonic()
            ledger.issued(step, prompts, samples)
            for group in groups:
                ledger.generated(step, group)
            ledger.scored(step, examples)
            ledger.trained(step, examples, len(examples))
            spent_s += time.monotonic() - began
        ledger.close()
    return {"us_per_sample": 1e6 * spent_s / (steps * len(examples)), "lines_per_sample": 5}


@contextmanager
def simulated_workers(count: int, times: StageTimes) -> Iterator[SimulatedWorkers]:
    """Ray actors of simulated rollout workers."""
    claim = ResourceClaim([Bundle("rollout", i, 0.01, 0) for i in range(count)])
    group = claim.spawn_group("rollout", SimulatedRollout, lambda rank: (rank, times), {}, LostWorkerError)
    try:
        asyncio.run(group.each(lambda worker, _: worker(SimulatedRollout.start), within_s=600, what="to start"))
        yield group
    finally:
        group.kill()
        claim.release()


def simulated_config(workers: int, ahead: int, steps: int) -> Config:
    """The demo's settings with `GROUPS_PER_WORKER` prompts a step for each worker."""
    prompts = workers * GROUPS_PER_WORKER
    words = [
        f"steps={steps}",
        f"rollout.ahead={ahead}",
        f"rollout.num_workers={workers}",
        f"rollout.prompts_per_step={prompts}",
        f"rollout.max_batch_sequences={GROUPS_AT_ONCE * 8}",
        "evaluation.at_start=false",
        "leakage.every_steps=0",
        f"data.minisci_train_size={max(4096, prompts * 2)}",
    ]
    return load(DEMO, words)


def simulated_step(workers: int, ahead: int, times: StageTimes, steps: int) -> Row:
    """Seconds a step of the real driver, from the second step on, beside the seconds that its stages slept."""
    config = simulated_config(workers, ahead, steps)
    task, samples = task_of(config), config.rollout.prompts_per_step * 8
    with simulated_workers(workers, times) as group:
        roles = Roles(
            RolloutGroup(FixedPool(cast(RolloutWorkers, group), config), config),
            SimulatedTeacher(times, examples_per_step=samples),
            SimulatedLearners(times),
            SimulatedWeights(group, times),
            restart=no_restart,
        )
        log = train_timed(config, roles, task)
    counted = range(1, steps)
    group_s = [
        [
            group_seconds(times, f"{train_sampling(config, step).seed}/{prompt.id}")
            for prompt in prompts_of_step(task.train, config, step)
        ]
        for step in counted
    ]
    slots = workers * GROUPS_AT_ONCE
    # Ahead of the learners engines need never be idle; else a step's last group is waited for.
    sample_s = sum(sum(step) / slots if ahead else makespan_s(step, slots) for step in group_s) / len(counted)
    examples = sum(m["rollout/learned_fraction"] for m in log.steps[1:]) / len(counted)
    stages = {"sample": sample_s, "score": times.score_s * examples, "learn": times.learn_s + times.publish_s}
    step_s = (log.step_ends[-1] - log.step_ends[0]) / len(counted)
    print(f"{workers} workers, ahead {ahead}: {step_s:.2f} s a step, its stages {stages}", flush=True)
    return {
        "workers": workers,
        "ahead": ahead,
        "spread": times.deviation,
        "stages_s": stages,
        "step_s": step_s,
        "to_sum": step_s / sum(stages.values()),
        "to_slowest": step_s / max(stages.values()),
        "samples_per_s": samples / step_s,
        "age_steps_max": max(m["policy/age_steps_max"] for m in log.steps),
    }


def makespan_s(seconds: Sequence[float], slots: int) -> float:
    """Seconds until the last group is done, when each starts in order as soon as a slot is free and the driver takes
    no time."""
    free_at = [0.0] * slots
    for group_s in seconds:
        heapq.heappush(free_at, heapq.heappop(free_at) + group_s)
    return max(free_at)


def real_step(steps: int) -> tuple[Row, StepTimer]:
    """Mean seconds of the demo's stages on real engines, from the third step on."""
    config = load(DEMO, [f"steps={steps}", "evaluation.at_start=false", "leakage.every_steps=0"])
    log = train_on_real_engines(config)
    later = log.steps[2:]

    def mean(key: str) -> float:
        return sum(m.get(key, 0.0) for m in later) / len(later)

    stages = sorted({key for metrics in later for key in metrics if key.startswith("time/")})
    row = {"step_s": mean("perf/step_s"), "samples_per_s": mean("perf/samples_per_s")}
    return row | {key: mean(key) for key in stages}, log


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64], help="simulated rollout workers")
    parser.add_argument("--steps", type=int, default=8, help="steps of each run")
    parser.add_argument("--real", action="store_true", help="also a few steps of the demo on real engines")
    parser.add_argument("--only", choices=["driver", "real"], help="the driver and its ledger alone, or real engines")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    raw = args.out / "step-cpu.json"
    results: Row = json.loads(raw.read_text()) if raw.exists() else {}
    with fenced():
        session.join(load(DEMO))
        if args.only != "real":
            results["driver"] = driver_alone(args.steps)
            results["ledger"] = ledger_alone(args.steps)
        if args.only is None:
            even = StageTimes(group_s=0.5, deviation=0.0, score_s=1.0, learn_s=1.2, publish_s=0.1)
            results["stages"] = [simulated_step(4, ahead, even, args.steps) for ahead in (0, 1)]
            slow = StageTimes(group_s=1.0, deviation=0.5, score_s=1.0, learn_s=1.2, publish_s=0.1)
            results["stages"] += [simulated_step(4, ahead, slow, args.steps) for ahead in (0, 1, 2)]
            results["scaling"] = [simulated_step(workers, 1, slow, args.steps) for workers in args.workers]
        if args.real or args.only == "real":
            results["real"], log = real_step(args.steps)
            plot_timeline(log, args.out / "step-cpu.png")
    save(args.out, "step-cpu", results, report(results))
