"""Throughput of whole runs: `python -m benchmarks.throughput configs/demo.yaml --rollout-workers 1,2 --zero 0,1,2,3`

Each point of the sweep is a real run: Ray actors, engines and driver as `launch.train` starts them, on this machine or
on the cluster that `ray_address` names. A run makes some steps to warm up and some that count. All points are run in
turn for several rounds, so that the spread between rounds shows the machine's noise. Factors are varied one at a time
around the config's own settings; `--product` runs all combinations. Arguments `key=value` after the config override its
settings.

`python -m benchmarks.throughput --compare OLD.json NEW.json` reports the changes beyond the noise.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.peak_memory import peak_gib_by_role
from benchmarks.common.results_files import RESULTS, save, write
from benchmarks.common.timed_runs import DEMO, RunLogWithSteps, task_of
from benchmarks.throughput.compare_sweeps import comparison, read_sweep
from benchmarks.throughput.sweep import (
    DEFAULT_SWEEP,
    FACTORS,
    ROLE_OF_STAGE,
    STAGES,
    Point,
    device_name,
    devices,
    parse_numbers,
    points_of,
)
from benchmarks.throughput.throughput_page import plot, report
from demopsd_dist.config import Config
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.run_record.console import format_time
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.training.recovery import train_with_recovery
from demopsd_dist.training.run import RunState, Task
from demopsd_dist.util.errors import ConfigError, DemoPSDError, InputError
from launch._command_line import count_gpus, exit_code_of
from launch._processes import fenced
from launch._task import compose_run, provenance
from workers.actors import RayActors
from workers.cluster import session
from workers.cluster.placement import check_fits, summary_of_roles

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]


def figures(steps: Sequence[Mapping[str, float]]) -> Row:
    """Means over some steps of a run: seconds per step, samples/s and response tokens/s, in all and by stage."""

    def total(key: str) -> float:
        return sum(step.get(key, 0.0) for step in steps)

    spent = {stage: total(f"time/{stage}_s") for stage in STAGES}
    tokens = {stage: total("rollout/tokens" if stage == "sample" else "rollout/learned_tokens") for stage in STAGES}
    return {
        "step_s": total("perf/step_s") / len(steps),
        "samples_per_s": total("rollout/samples") / total("perf/step_s"),
        "tokens_per_s": total("rollout/tokens") / total("perf/step_s"),
        "stage_s": {stage: spent[stage] / len(steps) for stage in STAGES},
        "stage_tokens_per_s": {stage: tokens[stage] / spent[stage] for stage in ROLE_OF_STAGE if spent[stage]},
    }


async def train(point: Point, task: Task, log: RunLog) -> Row:
    """Start, train and stop a run; return the time to start and the peak memory by role."""
    config = point.config
    began = time.monotonic()
    actors = RayActors(config, model_folder(config), log.note)
    try:
        roles = await actors.start()
        start_s = time.monotonic() - began
        run = compose_run(config, roles, task, log)
        try:
            await train_with_recovery(run, RunState(), "started")
        finally:
            run.ledger.close()
        host, gpu = await peak_gib_by_role(actors)
    finally:
        actors.stop()
    return {"start_s": start_s, "memory_gib": host, "gpu_memory_gib": gpu}


def measure_run(point: Point, task: Task, warm_up: int) -> Row:
    """Figures of one run of a point, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="demopsd-throughput-") as folder:
        config = replace(point.config, output_dir=folder)
        with RunLogWithSteps(RunFolder.create(config), config.steps, Console(file=StringIO())) as log:
            load = os.getloadavg()[0]
            start_and_memory = asyncio.run(train(replace(point, config=config), task, log))
            return {**figures(log.steps[warm_up:]), **start_and_memory, "load": load}


def training_task(point: Point) -> Task:
    """The point's questions to train on, without those to evaluate on."""
    return replace(task_of(point.config), test=[], ood=[])


def empty_rows(points: Sequence[Point], cpus: float) -> list[Row]:
    """A row for each point, before the first run."""
    return [
        {
            "label": point.label,
            "settings": point.settings,
            "roles": summary_of_roles(point.config),
            "devices": devices(point.config, cpus),
            "rounds": [],
            "failed": None,
        }
        for point in points
    ]


def run_rounds(
    rows: Sequence[Row], points: Sequence[Point], rounds: int, warm_up: int, save_rows: Callable[[], None]
) -> None:
    """Run all points in turn, for several rounds, with the order reversed in every second one. A point that fails is
    reported and left out of later rounds. `save_rows` is called after each run, also a failed one."""
    tasks = [training_task(point) for point in points]
    began, done = time.monotonic(), 0
    for turn in range(rounds):
        order = range(len(points)) if turn % 2 == 0 else reversed(range(len(points)))
        for i in order:
            done += 1
            if rows[i]["failed"]:
                continue
            prefix = f"round {turn + 1}/{rounds}  {points[i].label}: "
            try:
                result = measure_run(points[i], tasks[i], warm_up)
            except InputError:
                raise
            except DemoPSDError as error:
                rows[i]["failed"] = str(error)
                save_rows()
                print(f"{prefix}failed: {error}", flush=True)
                continue
            rows[i]["rounds"].append(result)
            save_rows()
            left_s = (time.monotonic() - began) / done * (rounds * len(points) - done)
            print(
                f"{prefix}{result['samples_per_s']:.1f} samples/s, {result['step_s']:.2f} s a step, started in "
                f"{result['start_s']:.0f} s   {format_time(left_s)} left",
                flush=True,
            )


def refuse_too_large(points: Sequence[Point], cpus: float, gpus: float) -> None:
    """Check that each point fits.

    Raises:
        ConfigError: a point's roles need more cores or GPUs than there are.
    """
    for point in points:
        try:
            check_fits(point.config, cpus=cpus, gpus=gpus)
        except ConfigError as error:
            raise ConfigError(f"{point.label}: {error}") from None


def run_sweep(arguments: argparse.Namespace) -> int:
    """Run a sweep and write its results. The exit code is 1 where a point failed."""
    swept = {factor.name: values for factor in FACTORS if (values := getattr(arguments, factor.name)) is not None}
    total = arguments.warm_up + arguments.steps
    points = points_of(arguments.config, arguments.overrides, swept or DEFAULT_SWEEP, total, arguments.product)
    first = points[0].config
    if first.ray_address is None:
        refuse_too_large(points, cpus=len(os.sched_getaffinity(0)), gpus=count_gpus())
    print(
        f"{len(points)} points, {arguments.rounds} rounds; a run has {arguments.warm_up} warm-up and "
        f"{arguments.steps} measured steps"
    )
    if arguments.dry_run:
        print("\n".join(f"  {point.label}   {summary_of_roles(point.config)}" for point in points))
        return 0
    with fenced():
        session.join(first)
        import ray

        resources = ray.cluster_resources()
        refuse_too_large(points, cpus=resources.get("CPU", 0.0), gpus=resources.get("GPU", 0.0))
        result = {**description(arguments, first, resources), "points": empty_rows(points, resources.get("CPU", 0.0))}
        name = f"throughput-{result['device']}"
        run_rounds(
            result["points"],
            points,
            arguments.rounds,
            arguments.warm_up,
            save_rows=lambda: write(arguments.out, name, result),
        )
    save(arguments.out, name, result, report(result))
    complete = [row for row in result["points"] if row["rounds"]]
    if complete:
        plot(result, arguments.out / f"{name}.png")
    return 0 if len(complete) == len(points) else 1


def description(arguments: argparse.Namespace, config: Config, resources: Mapping[str, Any]) -> Row:
    """Settings, machine and versions of a sweep, for its results. Ray must be running."""
    import ray

    return {
        "config": os.path.relpath(arguments.config.resolve(), ROOT),
        "overrides": arguments.overrides,
        "device": device_name(config, resources),
        "machine": {
            "nodes": sum(node["Alive"] for node in ray.nodes()),
            "cpus": resources.get("CPU", 0.0),
            "gpus": resources.get("GPU", 0.0),
            "architecture": platform.machine(),
        },
        "warm_up": arguments.warm_up,
        "steps": arguments.steps,
        **provenance(config),
    }


def compare(old: Path, new: Path) -> int:
    """Print the comparison of two results."""
    print("\n".join(comparison(read_sweep(old), read_sweep(new))))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=DEMO)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    for factor in FACTORS:
        parser.add_argument(
            f"--{factor.name}", type=parse_numbers, metavar="N,N,...", help=factor.key, dest=factor.name
        )
    parser.add_argument("--product", action="store_true", help="all combinations, not one factor at a time")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each point")
    parser.add_argument("--warm-up", type=int, default=2, help="steps of a run that do not count")
    parser.add_argument("--steps", type=int, default=4, help="steps of a run that count")
    parser.add_argument("--dry-run", action="store_true", help="print the points and stop")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("OLD", "NEW"), help="two results; runs nothing")
    arguments = parser.parse_intermixed_args(argv)
    for name in ("rounds", "steps"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    if arguments.compare:
        return exit_code_of(lambda: compare(*arguments.compare))
    return exit_code_of(lambda: run_sweep(arguments))
