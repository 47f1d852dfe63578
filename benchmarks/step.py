"""Where the time of a step goes, and what the driver adds: `python -m benchmarks.step [--workers 1 8 64] [--real]`

With simulated engines (`simulated.py`; the driver, the hand-over of prompts and Ray's actors are the real ones): what
the driver does by itself, a step's time beside that of its stages, and how sampling scales with rollout workers. With
`--real`, a few steps of `configs/demo.yaml` on real engines and a timeline of one. Writes tables, raw figures, a plot.
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
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.results_files import RESULTS, save
from benchmarks.common.simulated_roles import (
    SimulatedLearners,
    SimulatedRollout,
    SimulatedTeacher,
    StageTimes,
    group_seconds,
    responses,
)
from demopsd_dist.config import Config, load
from demopsd_dist.data.examples import examples_from_rewards, reward_group
from demopsd_dist.data.sources import load_data
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.ledger import Ledger
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.testing import World, stand_in_roles
from demopsd_dist.training.loop import train_with_recovery
from demopsd_dist.training.roles import Roles
from demopsd_dist.training.run import RunState, Task
from demopsd_dist.training.step_prompts import prompts_of_step, train_sampling
from launch._processes import fenced
from launch._task import build_task, run_of
from workers.actor_group import ActorGroup, ResourceClaim
from workers.actors import RayActors
from workers.cluster import session
from workers.cluster.placement import Bundle
from workers.rollout.dispatch import RolloutGroup
from workers.rollout.pool import FixedPool

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "configs" / "demo.yaml"
GROUPS_AT_ONCE = 2  # in a simulated engine
GROUPS_PER_WORKER = 8  # of a step
Row = dict[str, Any]


class StageTimeline(RunLog):
    """A run log that also keeps when each step ended."""

    step_ends: list[float]

    def __enter__(self) -> StageTimeline:
        self.step_ends = []
        super().__enter__()
        return self

    def step(self, step: int, metrics: dict[str, float]) -> None:
        super().step(step, metrics)
        self.step_ends.append(time.monotonic())


@dataclass
class SimulatedWeights:
    rollouts: ActorGroup
    times: StageTimes
    published: list[int] = field(default_factory=list)

    async def publish(self, version: int, *, moved: bool = True) -> None:
        await asyncio.sleep(self.times.publish_s)
        await self.rollouts.each(lambda worker, _: worker.mark_version.remote(version), within_s=60, what="a version")
        self.published.append(version)


def run(config: Config, roles: Roles, task: Task) -> StageTimeline:
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, output_dir=folder)
        path = RunFolder.create(config)
        with StageTimeline(path, config.steps, Console(file=StringIO())) as log:
            made = run_of(config, roles, replace(task, test=[], ood=[]), log)
            asyncio.run(train_with_recovery(made, RunState(), "started"))
            made.ledger.close()
    return log


def task_of(config: Config) -> Task:
    return build_task(config, model_folder(config), load_data(config.data).questions)[0]


def driver_alone(steps: int) -> Row:
    """Roles that answer at once: what is left is prompts, rewards, examples, packing and the log."""
    config = load(DEMO, [f"steps={steps}", "rollout.prompts_per_step=256", "evaluation.at_start=false"])
    at_once = StageTimes(group_s=0, deviation=0, score_s=0, learn_s=0, publish_s=0)
    roles = replace(
        stand_in_roles(World()),
        teacher=SimulatedTeacher(at_once, lessons_per_step=1),
        learners=SimulatedLearners(at_once),
    )
    log = run(config, roles, task_of(config))
    seconds = log.step_ends[-1] - log.step_ends[0]
    return {"samples_per_s": 256 * config.rollout.group_size * (steps - 1) / seconds}


async def nobody_is_lost() -> None:
    raise AssertionError("nothing dies here")


def ledger_alone(steps: int) -> Row:
    """What the account costs a sample: every line of a step in which all is trained, on disk when it is done."""
    config = load(DEMO, ["rollout.prompts_per_step=256"])
    task, spent_s, samples = task_of(config), 0.0, config.rollout.group_size
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        ledger.begin(0, "started")
        for step in range(1, steps + 1):
            prompts = prompts_of_step(task.train, config, step - 1)
            groups = [responses(prompt, train_sampling(config, step), step - 1, 0) for prompt in prompts]
            examples = examples_from_rewards(
                [reward_group(group, task.reward) for group in groups], scaled=False, leave_out_silent=False
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
def simulated_workers(count: int, times: StageTimes) -> Iterator[ActorGroup]:
    placement = ResourceClaim([Bundle("rollout", i, 0.01, 0) for i in range(count)])
    group = placement.start("rollout", SimulatedRollout, lambda rank: (rank, times), {})
    try:
        asyncio.run(group.each(lambda worker, _: worker.start.remote(), within_s=600, what="to start"))
        yield group
    finally:
        group.kill()
        placement.release()


def simulated(workers: int, ahead: int, times: StageTimes, steps: int) -> Row:
    """A run of the real driver; seconds a step from the second step on, beside the sums of what slept."""
    prompts = workers * GROUPS_PER_WORKER
    config = load(
        DEMO,
        [
            f"steps={steps}",
            f"rollout.ahead={ahead}",
            f"rollout.num_workers={workers}",
            f"rollout.prompts_per_step={prompts}",
            f"rollout.max_batch_sequences={GROUPS_AT_ONCE * 8}",
            "evaluation.at_start=false",
            "leakage.every_steps=0",
            f"data.minisci_train_size={max(4096, prompts * 2)}",
        ],
    )
    task = task_of(config)
    with simulated_workers(workers, times) as group:
        roles = Roles(
            RolloutGroup(FixedPool(group, config), config),
            SimulatedTeacher(times, lessons_per_step=prompts * 8),
            SimulatedLearners(times),
            SimulatedWeights(group, times),
            restart=nobody_is_lost,
        )
        log = run(config, roles, task)
    counted = range(1, steps)
    asked = [
        [
            group_seconds(times, f"{train_sampling(config, step).seed}/{prompt.id}")
            for prompt in prompts_of_step(task.train, config, step)
        ]
        for step in counted
    ]
    slots = workers * GROUPS_AT_ONCE
    # Ahead of the learners engines need never be idle; else a step's last group is waited for.
    sample_s = sum(sum(step) / slots if ahead else pulled_s(step, slots) for step in asked) / len(counted)
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
        "samples_per_s": prompts * 8 / step_s,
        "age_steps_max": max(m["policy/age_steps_max"] for m in log.steps),
    }


def pulled_s(seconds: Sequence[float], slots: int) -> float:
    """Until the last is done, where each is begun, in order, as soon as a slot is free: a driver that takes no time."""
    free_at = [0.0] * slots
    for one in seconds:
        heapq.heappush(free_at, heapq.heappop(free_at) + one)
    return max(free_at)


def on_real_engines(config: Config) -> StageTimeline:
    """The driver and the roles, as `launch.train` runs them. Ray is there already."""
    actors = RayActors(config, model_folder(config))
    try:
        return run(config, asyncio.run(actors.start()), task_of(config))
    finally:
        actors.stop()


def real(steps: int) -> tuple[Row, StageTimeline]:
    config = load(DEMO, [f"steps={steps}", "evaluation.at_start=false", "leakage.every_steps=0"])
    log = on_real_engines(config)
    later = log.steps[2:]

    def mean(key: str) -> float:
        return sum(m.get(key, 0.0) for m in later) / len(later)

    stages = sorted({key for metrics in later for key in metrics if key.startswith("time/")})
    row = {"step_s": mean("perf/step_s"), "samples_per_s": mean("perf/samples_per_s")}
    return row | {key: mean(key) for key in stages}, log


def plot(log: StageTimeline, out: Path) -> None:
    """The stages of the last step but one, as bars over time."""
    from matplotlib.figure import Figure

    begin, end = log.step_ends[-3], log.step_ends[-2]
    shown = ["sample", "support", "score", "learn", "publish_weights"]
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    for stage, started, ended in log.spans.since(begin):
        if stage in shown and started < end:
            left = max(started, begin)
            axes.barh(shown.index(stage), min(ended, end) - left, left=left - begin, color=f"C{shown.index(stage)}")
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    axes.set_xlabel("seconds since the step before was published")
    axes.set_title("One step of the demo, real engines on two CPU cores")
    figure.savefig(out, dpi=120)


def report(found: Row) -> list[str]:
    lines = ["# A step of the driver", ""]
    if "driver" in found:
        lines += [
            f"The driver alone, roles that answer at once: {found['driver']['samples_per_s']:,.0f} samples/s.",
            "",
        ]
    if "ledger" in found:
        spent = found["ledger"]["us_per_sample"]
        share = spent * 1e-6 * found["driver"]["samples_per_s"]
        lines += [
            f"The ledger takes {spent:.1f} µs a sample, of five lines on disk: {share:.1%} of the time of the driver "
            "alone, which has no engine to wait for."
            + (
                f" Of a step of the demo, {spent * 1e-6 * found['real']['samples_per_s']:.2%}."
                if "real" in found
                else ""
            ),
            "",
        ]
    if "stages" in found:
        lines += [
            "**Simulated engines** that sleep; driver, hand-over and Ray actors are real. `spread` is the deviation of "
            "the logarithm of a group's time. `sample` is that of engines which a driver without any cost keeps busy: "
            "with nothing ahead until a step's last group is done, else never idle.",
            "",
            "| workers | ahead | spread | sample, s | score | learn + publish | step, s | / sum | / slowest | age |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in found["stages"]:
            stages = " | ".join(f"{row['stages_s'][name]:.2f}" for name in ("sample", "score", "learn"))
            lines.append(
                f"| {row['workers']} | {row['ahead']} | {row['spread']:g} | {stages} | {row['step_s']:.2f} | "
                f"{row['to_sum']:.3f} | {row['to_slowest']:.3f} | {row['age_steps_max']:.0f} |"
            )
        lines.append("")
    if "scaling" in found:
        one = found["scaling"][0]
        lines += [
            "Scaling (**simulated**, ahead 1, as many prompts a worker): share of the ideal is samples/s over that of "
            "engines that are never idle.",
            "",
            "| workers | samples/s | share of the ideal | against one worker |",
            "|---|---|---|---|",
        ]
        for row in found["scaling"]:
            ideal = row["stages_s"]["sample"] / row["step_s"]
            times = row["samples_per_s"] / one["samples_per_s"] * one["workers"]
            lines.append(f"| {row['workers']} | {row['samples_per_s']:,.0f} | {ideal:.1%} | {times:.1f}x |")
        lines.append("")
    if "real" in found:
        lines += [
            "The demo on **real engines**, two CPU cores (stages overlap):",
            "",
            "| figure | value |",
            "|---|---|",
        ]
        lines += [f"| {key} | {value:.2f} |" for key, value in found["real"].items()]
        lines.append("")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--real", action="store_true", help="also a few steps of the demo on real engines")
    parser.add_argument("--only", choices=["driver", "real"], help="the driver and its ledger alone, or real engines")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    raw = args.out / "step-cpu.json"
    found: Row = json.loads(raw.read_text()) if raw.exists() else {}
    with fenced():
        session.join(load(DEMO))
        if args.only != "real":
            found["driver"] = driver_alone(args.steps)
            found["ledger"] = ledger_alone(args.steps)
        if args.only is None:
            even = StageTimes(group_s=0.5, deviation=0.0, score_s=1.0, learn_s=1.2, publish_s=0.1)
            found["stages"] = [simulated(4, ahead, even, args.steps) for ahead in (0, 1)]
            slow = StageTimes(group_s=1.0, deviation=0.5, score_s=1.0, learn_s=1.2, publish_s=0.1)
            found["stages"] += [simulated(4, ahead, slow, args.steps) for ahead in (0, 1, 2)]
            found["scaling"] = [simulated(workers, 1, slow, args.steps) for workers in args.workers]
        if args.real or args.only == "real":
            found["real"], log = real(args.steps)
            plot(log, args.out / "step-cpu.png")
    save(args.out, "step-cpu", found, report(found))


if __name__ == "__main__":
    main()
