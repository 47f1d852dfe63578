"""Methods and controls against each other: `python -m benchmarks.experiment configs/experiments/minisci.yaml`

For each arm the learning rate is chosen on validation questions, every arm trying as many; then each seed is trained
and evaluated on the test questions, which nothing was chosen by. Each run is a `python -m launch.train` of its own.
What it gave is kept as one small file under `--out`; a run whose file is there is not run again, so the command may be
stopped and started as often as one likes. Words after the file go over it: `seeds=[3,4,5]`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmarks.experiment.experiment_page import write_report
from demopsd_dist.config import load, to_yaml
from demopsd_dist.util.errors import ConfigError, DemoPSDError
from launch._command_line import exit_code_of
from launch._processes import fenced

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "experiments"
CURVES = ("rollout/reward_mean", "policy/entropy_nats", "demopsd/alpha_mean")


@dataclass
class Arm:
    """What one arm has of its own."""

    settings: list[str] = field(default_factory=list)
    alpha_max_is_mean_alpha_of: str | None = None
    learning_rate_of: str | None = None  # not tuned, but taken from that arm
    learning_rate_times_one_minus_mean_alpha_of: str | None = None


@dataclass
class Tuning:
    seed: int = 1000
    learning_rates: list[float] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)


@dataclass
class FinalRuns:
    settings: list[str] = field(default_factory=list)


@dataclass
class Experiment:
    base: str = "../demo.yaml"
    seeds: list[int] = field(default_factory=list)
    parallel: int = 1
    compared_with: str = "demopsd"
    settings: list[str] = field(default_factory=list)
    tuning: Tuning = field(default_factory=Tuning)
    final: FinalRuns = field(default_factory=FinalRuns)
    arms: dict[str, Arm] = field(default_factory=dict)


@dataclass(frozen=True)
class ArmRun:
    """One training run: a name, also of its record, and the words that make its config."""

    name: str
    words: tuple[str, ...]


class ExperimentRunner:
    """Runs what has no record yet, a few at a time."""

    def __init__(self, experiment: Experiment, base: Path, out: Path) -> None:
        self.experiment, self._base, self._out = experiment, base, out
        self._running: set[subprocess.Popen[str]] = set()
        (out / "runs").mkdir(parents=True, exist_ok=True)

    def all(self, runs: Sequence[ArmRun]) -> dict[str, dict[str, Any]]:
        """Records by name.

        Raises:
            ConfigError: a run's settings are wrong, or its record is of other settings.
            DemoPSDError: a run failed; those beside it are finished first.
        """
        for run in runs:
            self._check(run)
        missing = [run for run in runs if not self._record(run).exists()]
        print(f"{len(runs)} runs, {len(runs) - len(missing)} of them done before", flush=True)
        with ThreadPoolExecutor(self.experiment.parallel) as pool:
            try:
                list(pool.map(self._train, missing))
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    for process in list(self._running):
                        process.terminate()  # which cleans up after itself
                pool.shutdown(cancel_futures=True)
                raise
        return {run.name: json.loads(self._record(run).read_text()) for run in runs}

    def _record(self, run: ArmRun) -> Path:
        return self._out / "runs" / f"{run.name}.json"

    def _check(self, run: ArmRun) -> None:
        load(self._base, run.words)
        if self._record(run).exists() and json.loads(self._record(run).read_text())["words"] != list(run.words):
            raise ConfigError(
                f"{self._record(run)} was made with other settings. Give another --out, or remove it to run again."
            )

    def _train(self, run: ArmRun) -> None:
        started = time.monotonic()
        folder = Path("runs") / "experiments" / self._out.name / run.name
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was stopped
        words = [*run.words, f"output_dir={folder.parent}", f"name={run.name}"]
        command = [sys.executable, "-m", "launch.train", str(self._base), *words]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        ) as process:
            self._running.add(process)
            said, _ = process.communicate()
            self._running.remove(process)
        if process.returncode:
            raise DemoPSDError(f"{run.name} failed ({' '.join(command)}):\n{said[-2000:]}")
        record = {"words": run.words, "config": to_yaml(load(self._base, run.words)), **told(ROOT / folder)}
        aside = self._record(run).with_suffix(".tmp")
        aside.write_text(json.dumps(record, indent=1) + "\n")
        aside.rename(self._record(run))
        shutil.rmtree(ROOT / folder)
        accuracy = record["summary"]["accuracy_after"]["average"]
        print(f"{run.name:<36} {accuracy:.1%}   {time.monotonic() - started:.0f} s", flush=True)


def told(folder: Path) -> dict[str, Any]:
    """What is kept of a run: its summary, and curves over the steps."""
    summary = json.loads((folder / "summary.json").read_text())
    for split in summary["evaluation"].values():
        del split["example"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "evaluation" not in line]
    curves = {key: [round(step[key], 5) for step in steps if key in step] for key in CURVES}
    return {"summary": summary, "curves": {key: values for key, values in curves.items() if values}}


def tune(bench: ExperimentRunner) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """For each arm its best tuning run's record, and the words that make its final runs; without learning rates to
    try, all arms keep that of their settings."""
    arms, tuning = bench.experiment.arms, bench.experiment.tuning
    common = (*bench.experiment.settings, *tuning.settings)
    best: dict[str, dict[str, Any]] = {}
    words = {name: list(arm.settings) for name, arm in arms.items()}
    if not tuning.learning_rates:
        return best, words

    def tuned(names: list[str]) -> None:
        runs = {
            name: [
                ArmRun(
                    f"tuning-{name}-{rate:g}",
                    (*common, *words[name], f"learner.learning_rate={rate:g}", f"seed={tuning.seed}"),
                )
                for rate in tuning.learning_rates
            ]
            for name in names
        }
        records = bench.all([run for own in runs.values() for run in own])
        for name in names:
            tried = [
                records[run.name] | {"learning_rate": rate}
                for run, rate in zip(runs[name], tuning.learning_rates, strict=True)
            ]
            best[name] = max(tried, key=lambda record: record["summary"]["accuracy_after"]["average"])
            words[name].append(f"learner.learning_rate={best[name]['learning_rate']:g}")

    own = [name for name, arm in arms.items() if arm.learning_rate_of is None]
    tuned([name for name in own if arms[name].alpha_max_is_mean_alpha_of is None])
    later = [name for name in own if name not in best]
    for name in later:
        alpha = _mean_alpha(best, arms[name].alpha_max_is_mean_alpha_of)
        words[name].append(f"demopsd.alpha_max={alpha:.4f}")
    tuned(later)
    for name, arm in arms.items():
        if arm.learning_rate_of is not None:
            rate = best[arm.learning_rate_of]["learning_rate"]
            if arm.learning_rate_times_one_minus_mean_alpha_of is not None:
                rate *= 1 - _mean_alpha(best, arm.learning_rate_times_one_minus_mean_alpha_of)
            words[name].append(f"learner.learning_rate={rate:.4g}")
    return best, words


def _mean_alpha(best: dict[str, dict[str, Any]], arm: str | None) -> float:
    assert arm is not None
    return float(best[arm]["summary"]["alpha_mean"])


def run(experiment: Experiment, base: Path, out: Path) -> None:
    bench = ExperimentRunner(experiment, base, out)
    _, words = tune(bench)
    common = (*experiment.settings, *experiment.final.settings)
    runs = [ArmRun(f"base-seed{seed}", (*common, "steps=0", f"seed={seed}")) for seed in experiment.seeds]
    runs += [
        ArmRun(f"{name}-seed{seed}", (*common, *own, f"seed={seed}"))
        for seed in experiment.seeds
        for name, own in words.items()
    ]
    records = bench.all(runs)
    table = {name: [records[f"{name}-seed{seed}"] for seed in experiment.seeds] for name in ("base", *words)}
    rates = {name: f"{load(base, [*common, *own]).learner.learning_rate:g}" for name, own in words.items()}
    write_report(table, rates, experiment.compared_with, experiment.tuning.learning_rates, out)
    print(f"table and plots in {out}")


def read(path: Path, words: Sequence[str]) -> Experiment:
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(Experiment), OmegaConf.load(path), OmegaConf.from_dotlist([*words])
        )
        experiment = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, OSError) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None
    assert isinstance(experiment, Experiment)
    if experiment.compared_with not in experiment.arms:
        raise ConfigError(
            f"{path}: compared_with={experiment.compared_with} is not an arm: {', '.join(experiment.arms)}."
        )
    for name, arm in experiment.arms.items():
        others = (
            arm.alpha_max_is_mean_alpha_of,
            arm.learning_rate_of,
            arm.learning_rate_times_one_minus_mean_alpha_of,
        )
        for other in others:
            if other is not None and other not in experiment.arms:
                raise ConfigError(f"{path}: arm {name} refers to {other}, which is not an arm.")
    return experiment


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--out", type=Path, help="where records, tables and plots go")
    arguments = parser.parse_intermixed_args()

    def work() -> int:
        experiment = read(arguments.experiment, arguments.overrides)
        out = arguments.out or RESULTS / arguments.experiment.stem
        with fenced():  # no run outlives this process
            run(experiment, arguments.experiment.parent / experiment.base, out)
        return 0

    return exit_code_of(work)
