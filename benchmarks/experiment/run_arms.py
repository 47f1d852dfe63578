"""Comparison of methods and controls: `python -m benchmarks.experiment configs/experiments/minisci.yaml`

Each arm's learning rate is chosen on validation questions, from the same number of candidates for every arm. Each seed
is then trained and evaluated on the test questions, which no choice was made on. Each run is a `demopsd train`
of its own. Its record is one line of `records.jsonl` under `--out`; a run that has a record is not run again, so the
command may be stopped and started again. With `--table` nothing is run: the table is made from the records that there
are. Words after the file override it: `seeds=[3,4,5]`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.experiment.dose_page import write_dose
from benchmarks.experiment.experiment_file import Experiment, read_experiment
from benchmarks.experiment.experiment_page import write_report
from benchmarks.experiment.run_records import Record, RunRecords
from demopsd_dist.config import load, to_yaml
from demopsd_dist.run_record import samples
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.util.errors import ConfigError, DemoPSDError
from launch._command_line import exit_code_of
from launch._processes import fenced

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "experiments"
CURVES = (
    "rollout/reward_mean",
    "policy/entropy_nats",
    "demopsd/alpha_mean",
    "rollout/response_tokens_mean",
    "rollout/repeated_fraction",
    "drift/initial_kl_nats",
)


@dataclass(frozen=True)
class ArmRun:
    """One training run: a name, also of its record, and the words that make its config."""

    name: str
    words: tuple[str, ...]


class ExperimentRunner:
    """Runner of the training runs that have no record yet, `experiment.parallel` at a time.

    Args:
        table_only: run nothing.
    """

    def __init__(self, experiment: Experiment, base: Path, out: Path, table_only: bool = False) -> None:
        self.experiment, self._base, self._out, self._table_only = experiment, base, out, table_only
        self.records = RunRecords(out / "records.jsonl")
        self._processes: set[subprocess.Popen[str]] = set()
        self._has_failed = False
        out.mkdir(parents=True, exist_ok=True)

    def complete(self, runs: Sequence[ArmRun]) -> dict[str, Record]:
        """Train the runs without a record, and return the records of all `runs` by name.

        Raises:
            ConfigError: a run's settings are wrong, or its record has other settings; or one has no record, and nothing
                may be run.
            DemoPSDError: a run failed; concurrent runs are finished first.
        """
        recorded = self.records.load()
        for run in runs:
            self._check(run, recorded.get(run.name))
        missing = [run for run in runs if run.name not in recorded]
        if missing and self._table_only:
            raise ConfigError(
                f"{self.records.path} has no record of {missing[0].name}, which chooses a learning rate. Leave out "
                "--table."
            )
        print(f"{len(runs)} runs, {len(runs) - len(missing)} of them done before", flush=True)
        with ThreadPoolExecutor(self.experiment.parallel) as pool:
            futures = [pool.submit(self._train_unless_one_failed, run) for run in missing]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            except KeyboardInterrupt:
                for process in list(self._processes):
                    process.terminate()  # which cleans up after itself
                raise
            finally:
                pool.shutdown(cancel_futures=True)
        for future in futures:
            if not future.cancelled():
                future.result()  # raises its error
        if missing:
            recorded = self.records.load()
        return {run.name: recorded[run.name] for run in runs}

    def recorded(self, runs: Sequence[ArmRun]) -> dict[str, Record]:
        """The records that there are among those of `runs`, by name; the other runs are printed.

        Raises:
            ConfigError: there is none, or a record has other settings.
        """
        recorded = self.records.load()
        for run in runs:
            self._check(run, recorded.get(run.name))
        missing = [run.name for run in runs if run.name not in recorded]
        if len(missing) == len(runs):
            raise ConfigError(f"{self.records.path} has no record of these {len(runs)} runs. Leave out --table.")
        if missing:
            print(f"{len(missing)} of {len(runs)} runs are missing: {', '.join(missing)}", flush=True)
        return {run.name: recorded[run.name] for run in runs if run.name in recorded}

    def _check(self, run: ArmRun, record: Record | None) -> None:
        load(self._base, run.words)
        if record is not None and record["words"] != list(run.words):
            raise ConfigError(
                f"The record of {run.name} in {self.records.path} was made with other settings. "
                "Choose another --out, or remove its line to run it again."
            )

    def _train_unless_one_failed(self, run: ArmRun) -> None:
        if self._has_failed:
            return
        try:
            self._train(run)
        except BaseException:
            self._has_failed = True  # before this thread takes the next run
            raise

    def _train(self, run: ArmRun) -> None:
        started = time.monotonic()
        folder = Path("runs") / "experiments" / self._out.name / run.name
        shutil.rmtree(folder, ignore_errors=True)  # folder of an attempt that was stopped
        words = [*run.words, f"output_dir={folder.parent}", f"name={run.name}"]
        command = [sys.executable, "-m", "launch.train", str(self._base), *words]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        ) as process:
            self._processes.add(process)
            output, _ = process.communicate()
            self._processes.remove(process)
        if process.returncode:
            raise DemoPSDError(f"{run.name} failed ({' '.join(command)}):\n{output[-2000:]}")
        config = to_yaml(load(self._base, run.words))
        record = {"words": list(run.words), "config": config, **results_of(ROOT / folder)}
        self.records.append(run.name, record)
        shutil.rmtree(ROOT / folder)
        accuracy = record["summary"]["accuracy_after"]["average"]
        print(f"{run.name:<36} {accuracy:.1%}   {time.monotonic() - started:.0f} s", flush=True)


def results_of(folder: Path) -> dict[str, Any]:
    """Summary of a run folder without its example responses, and the `CURVES` over the steps."""
    summary = json.loads((folder / "summary.json").read_text())
    for split in summary["evaluation"].values():
        del split["example"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "evaluation" not in line]
    curves = {key: [round(step[key], 5) for step in steps if key in step] for key in CURVES}
    evaluations = [evaluation_row(line) for line in lines if line.get("evaluation") in ("test", "ood")]
    return {
        "summary": summary,
        "curves": {key: values for key, values in curves.items() if values},
        "evaluations": evaluations,
        "by_question": {split: question_means(folder, split) for split in ("test", "ood")},
    }


def question_means(folder: Path, split: str) -> list[list[Any]]:
    """Field and mean reward of each question whose responses the last evaluation recorded
    (`samples.evaluation_questions`)."""
    paths = sorted(path for path in samples.files(RunFolder(folder).evaluations) if path.stem.endswith(f"-{split}"))
    rows = samples.read(paths[-1]) if paths else []
    return [[row["field"], round(fmean(row["rewards"]), 5)] for row in rows]


def evaluation_row(line: dict[str, Any]) -> dict[str, Any]:
    """One evaluation of a run: its step and split, with mean@k, pass@k, entropy and length."""
    return {
        "step": line["step"],
        "split": line["evaluation"],
        "mean": round(line["mean"]["average"], 5),
        "pass": round(line["passes"][str(line["samples"])]["average"], 5),
        "entropy_nats": round(line["entropy_nats"], 5),
        "response_tokens": round(line["response_tokens_mean"], 2),
        "unparsed": round(line["unparsed_fraction"], 5),
    }


class Tuner:
    """Search of a learning rate for each arm.

    Attributes:
        best: record of each tuned arm's best run, with its `learning_rate`.
        words: overrides of each arm's final runs.
    """

    def __init__(self, runner: ExperimentRunner) -> None:
        self._runner, self._experiment = runner, runner.experiment
        self.best: dict[str, Record] = {}
        self.words = {name: list(arm.settings) for name, arm in self._experiment.arms.items()}

    def tune(self) -> None:
        """Tune all arms. Without learning rates to try, every arm keeps the rate of its settings."""
        arms = self._experiment.arms
        if not self._experiment.tuning.learning_rates:
            return
        own = [name for name, arm in arms.items() if arm.learning_rate_of is None]
        self._choose_rates([name for name in own if arms[name].alpha_max_is_mean_alpha_of is None])
        later = [name for name in own if name not in self.best]
        for name in later:
            alpha = self._mean_alpha(arms[name].alpha_max_is_mean_alpha_of)
            self.words[name].append(f"demopsd.alpha_max={alpha:.4f}")
        self._choose_rates(later)
        for name, arm in arms.items():
            if arm.learning_rate_of is not None:
                rate = self.best[arm.learning_rate_of]["learning_rate"]
                if arm.learning_rate_times_one_minus_mean_alpha_of is not None:
                    rate *= 1 - self._mean_alpha(arm.learning_rate_times_one_minus_mean_alpha_of)
                self.words[name].append(f"learner.learning_rate={rate:.4g}")

    def _choose_rates(self, names: Sequence[str]) -> None:
        """Run all candidate rates of these arms, and keep each arm's best by validation accuracy."""
        rates = self._experiment.tuning.learning_rates
        runs = {name: [self._tuning_run(name, rate) for rate in rates] for name in names}
        records = self._runner.complete([run for own in runs.values() for run in own])
        for name in names:
            candidates = [
                records[run.name] | {"learning_rate": rate} for run, rate in zip(runs[name], rates, strict=True)
            ]
            self.best[name] = max(candidates, key=lambda record: record["summary"]["accuracy_after"]["average"])
            self.words[name].append(f"learner.learning_rate={self.best[name]['learning_rate']:g}")

    def _tuning_run(self, name: str, rate: float) -> ArmRun:
        tuning = self._experiment.tuning
        common = (*self._experiment.settings, *tuning.settings)
        words = (*common, *self.words[name], f"learner.learning_rate={rate:g}", f"seed={tuning.seed}")
        return ArmRun(f"tuning-{name}-{rate:g}", words)

    def _mean_alpha(self, arm: str | None) -> float:
        assert arm is not None
        return float(self.best[arm]["summary"]["alpha_mean"])


def tune(runner: ExperimentRunner) -> tuple[dict[str, Record], dict[str, list[str]]]:
    """Each arm's best tuning record, and the words that make its final runs."""
    tuner = Tuner(runner)
    tuner.tune()
    return tuner.best, tuner.words


def final_settings(experiment: Experiment) -> tuple[str, ...]:
    """Overrides of all final runs."""
    return (*experiment.settings, *experiment.final.settings)


def planned_runs(experiment: Experiment, words: dict[str, list[str]]) -> list[ArmRun]:
    """All final runs, the untrained model's last.

    Args:
        words: overrides of each arm.
    """
    common = final_settings(experiment)
    of_seed = {seed: (*experiment.seed_settings.get(seed, []), f"seed={seed}") for seed in experiment.seeds}
    runs = [
        ArmRun(f"{name}-seed{seed}", (*common, *own, *of_seed[seed]))
        for seed in experiment.seeds
        for name, own in words.items()
        if seed in (experiment.arms[name].seeds or experiment.seeds)
    ]
    base = [ArmRun(f"base-seed{seed}", (*common, "steps=0", *of_seed[seed])) for seed in experiment.seeds]
    return runs + base


def run_experiment(experiment: Experiment, base: Path, out: Path, table_only: bool = False) -> None:
    """Tune and train all arms, then write tables, CSV and plots to `out`.

    Args:
        table_only: run nothing; missing runs are named, and the table has the others.

    Raises:
        ConfigError: `table_only`, and there are no records.
    """
    runner = ExperimentRunner(experiment, base, out, table_only)
    _, words = tune(runner)
    runs = planned_runs(experiment, words)
    records = runner.recorded(runs) if table_only else runner.complete(runs)
    table = {
        name: [records[run] for seed in experiment.seeds if (run := f"{name}-seed{seed}") in records]
        for name in ("base", *words)
    }
    table = {name: rows for name, rows in table.items() if rows}
    rates = {
        name: f"{load(base, [*final_settings(experiment), *own]).learner.learning_rate:g}"
        for name, own in words.items()
    }
    write_report(table, rates, experiment, out)
    write_dose(table, experiment.dose, out)
    print(f"table and plots in {out}")


def main() -> int:
    """Command line of the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="YAML file of arms, seeds and settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the experiment to override")
    parser.add_argument("--out", type=Path, help="folder of records, tables and plots")
    parser.add_argument("--table", action="store_true", help="run nothing, and make the table of the runs so far")
    arguments = parser.parse_intermixed_args()

    def work() -> int:
        experiment = read_experiment(arguments.experiment, arguments.overrides)
        out = arguments.out or RESULTS / arguments.experiment.stem
        with fenced():  # no run outlives this process
            run_experiment(experiment, arguments.experiment.parent / experiment.base, out, arguments.table)
        return 0

    return exit_code_of(work)
