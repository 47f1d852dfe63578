"""Log of a run: metrics to `metrics.jsonl` and other sinks, a console line a step, a live view, and the summary."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.live import Live

from demopsd_dist.run_record import replay_batch, samples
from demopsd_dist.run_record.console import Progress, format_time
from demopsd_dist.run_record.folder import RunFolder, open_to_append, replace_text, writing
from demopsd_dist.run_record.profiling.timeline import Spans
from demopsd_dist.run_record.sinks import Sink, flatten_numbers
from demopsd_dist.training.evaluate import Evaluation, evaluation_from_record
from demopsd_dist.util.fitted_lines import fitted
from demopsd_dist.util.printable import escape_control_chars

Metrics = Mapping[str, float]

SUMMARISED = {
    "active_fraction": "rollout/learned_fraction",
    "alpha_mean": "demopsd/alpha_mean",
    "disagreement_mean_nats": "demopsd/disagreement_mean_nats",
    "teacher_leakage_nats": "leakage/teacher_nats",
    "target_leakage_nats": "leakage/target_nats",
    "order_violated_fraction": "entropy/order_violated_fraction",
    **{
        f"{family}_{name}": f"leakage/{family}_{name}"
        for family in ("siblings", "answers")
        for name in ("teacher_nats", "target_nats", "contexts_mean")
    },
}
"""Metrics whose mean over the steps is in the summary: name in the summary -> name of the metric."""


class StepTotals:
    """Totals of the steps so far.

    Attributes:
        steps: number of steps.
        last: metrics of the last step; empty before the first.
        rewarded: True once a step had a mean reward above 0.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.last: Metrics = {}
        self.rewarded = False
        self._sums: dict[str, float] = {}
        self._counts: Counter[str] = Counter()
        self._samples = self._seconds = 0.0
        self._logp_diff_max: float | None = None

    def add(self, metrics: Metrics) -> None:
        """Add the metrics of a finished step."""
        self.steps += 1
        self.last = metrics
        self.rewarded = self.rewarded or bool(metrics.get("rollout/reward_mean"))
        self._samples += metrics["rollout/samples"]
        self._seconds += metrics["perf/step_s"]
        for key in SUMMARISED.values():
            if key in metrics:
                self._sums[key] = self._sums.get(key, 0) + metrics[key]
                self._counts[key] += 1
        difference = metrics.get("mismatch/logp_diff_max")
        if difference is not None:
            self._logp_diff_max = max(self._logp_diff_max or 0.0, difference)

    def summary(self) -> dict[str, float | None]:
        """Means of `SUMMARISED`, those that were measured, the largest mismatch (None if not measured) and samples per
        second; empty before the first step."""
        if not self.steps:
            return {}
        means = {name: self._sums[key] / self._counts[key] for name, key in SUMMARISED.items() if key in self._sums}
        return {**means, "logp_diff_max": self._logp_diff_max, "samples_per_s": self._samples / self._seconds}


class RunLog:
    """Log of one run. Use it as a context manager: the terminal is restored even after an error.

    It holds totals of the steps and the first and last evaluation of each split, not all of them: its memory does not
    grow with the length of the run.
    """

    def __init__(
        self, folder: RunFolder, total_steps: int, console: Console | None = None, sinks: Sequence[Sink] = ()
    ) -> None:
        self.folder = folder
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.stage_s: dict[str, float] = {}
        self.evaluations: dict[str, list[Evaluation]] = {}
        self.totals = StepTotals()
        self.skipped: Mapping[str, int] = {}
        self.withheld: Collection[str] = ()  # splits whose texts no line may show
        self._noted: set[str] = set()
        self._total_steps = total_steps
        self._file = open_to_append(folder.metrics)
        self._sinks = sinks
        self.spans = Spans()
        self.last_step_s = (0.0, 0.0)  # start and end of the last step by the monotonic clock
        self._step_stage_s: dict[str, float] = {}
        self._step_started = time.monotonic()
        self._progress = Progress(total_steps)
        self._live = Live(self._progress, console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        with suppress(OSError):  # every record was flushed; what a full disk refused was reported then
            self._file.close()
        for sink in self._sinks:
            sink.close()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds spent inside to `stage`, for this step and for the run. Stages may overlap."""
        started = time.monotonic()
        try:
            with self.spans.span(stage):
                yield
        finally:
            spent = time.monotonic() - started
            for totals in (self.stage_s, self._step_stage_s):
                totals[stage] = totals.get(stage, 0.0) + spent

    def note(self, text: str) -> None:
        """Print a line. On a terminal it is broken between its items; texts of prompts, after `| `, are not."""
        width = self.console.width if self.console.is_terminal else None
        for line in fitted(text, width, indent=6):
            self.console.print(line, markup=False)

    def note_once(self, text: str) -> None:
        """Write a line to the log, unless this process has written it before."""
        if text not in self._noted:
            self._noted.add(text)
            self.note(text)

    def start_steps(self) -> None:
        """Start the clock of the first step, and the live view."""
        self._step_started = time.monotonic()
        self._step_stage_s = {}
        if self.console.is_terminal:
            self._live.start()

    def show_sample(self, row: samples.Row) -> None:
        """Show a response of the last step in the live view."""
        self._progress.show_sample(row)

    def roll_back(self, step: int) -> None:
        """Reset the log to its state after this step, from the run folder: at a resume or after a rollback.

        Metrics of later steps are moved to `metrics-undone.jsonl`; samples and replay batches of them are removed.
        """
        self._file.close()
        remaining: list[str] = []
        undone: list[str] = []
        for line in self.folder.metrics.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            (remaining if _is_complete(line) and json.loads(line)["step"] <= step else undone).append(line)
        if undone:
            with writing(self.folder.undone_metrics), open_to_append(self.folder.undone_metrics) as file:
                file.writelines(undone)
            replace_text(self.folder.metrics, "".join(remaining))
        if damaged := sum(not _is_complete(line) for line in undone if line.endswith("\n")):
            self.note(
                f"warning: {damaged} lines of {self.folder.metrics} are damaged; they were moved to "
                f"{self.folder.undone_metrics}, and their steps are missing in summary and report"
            )
        self._file = open_to_append(self.folder.metrics)
        self.totals, self.evaluations = StepTotals(), {}
        self._progress.roll_back()
        for record in map(json.loads, remaining):
            if (split := record.pop("evaluation", None)) is not None:
                self._keep_evaluation(split, evaluation_from_record(record))
            else:
                self._add_step(record.pop("step"), record)
        samples.remove_after(self.folder.samples, step)
        samples.remove_evaluations_after(self.folder.evaluations, step)
        replay_batch.remove_except(
            self.folder.replay, [other for other in replay_batch.recorded_steps(self.folder.replay) if other <= step]
        )

    @property
    def step_stage_s(self) -> Mapping[str, float]:
        """Seconds of each stage since the last step was recorded."""
        return self._step_stage_s

    @property
    def last_step(self) -> int:
        return self.totals.steps

    def write_step(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of a step. Its time is that since the previous step was recorded."""
        now = time.monotonic()
        self.last_step_s = (self._step_started, now)
        step_s, self._step_started = now - self._step_started, now
        metrics = metrics | {
            "perf/step_s": step_s,
            "perf/samples_per_s": metrics["rollout/samples"] / step_s,
            "perf/tokens_per_s": metrics["rollout/tokens"] / step_s,
        }
        metrics |= {f"time/{stage}_s": spent for stage, spent in self._step_stage_s.items()}
        self._step_stage_s = {}
        self._add_step(step, metrics)
        self._write({"step": step, **metrics})
        for sink in self._sinks:
            sink.write(step, metrics)
        self.note(format_step(step, self._total_steps, metrics, self._progress.left_s))

    def write_evaluation(self, step: int, split: str, result: Evaluation) -> None:
        """Record the results of one split of an evaluation after this step."""
        self._keep_evaluation(split, result)
        self._step_started = time.monotonic()  # the time of the evaluation does not count for the next step
        self._write({"step": step, "evaluation": split, **asdict(result)})
        for sink in self._sinks:
            sink.write(step, flatten_numbers(asdict(result), f"evaluation/{split}"))
        self.note(f"{split:>5} after step {step}: {format_evaluation(result)}")
        if result.mean.average < 0.1 and not split.startswith("early/"):
            self.note(
                "      example: not shown, as this data set's items must not be republished"
                if split in self.withheld
                else "      example: "
                + "  ".join(f"{key} {escape_control_chars(text[-200:])}" for key, text in result.example.items())
            )

    def summary(self) -> dict[str, Any]:
        """Summary of the run so far. Keys are absent if they were not measured."""
        test, ood = self.evaluations.get("test", []), self.evaluations.get("ood", [])

        def accuracy(index: int) -> dict[str, float]:
            out = {**test[index].mean.by_field, "average": test[index].mean.average}
            return {**out, "ood": ood[index].mean.average} if ood else out

        summary: dict[str, Any] = {"steps": self.totals.steps, "skipped_questions": dict(self.skipped)}
        if len(test) > 1:
            summary |= {"accuracy_before": accuracy(0), "entropy_before": test[0].entropy_nats}
        if test:
            summary |= {"accuracy_after": accuracy(-1), "entropy_after": test[-1].entropy_nats}
        summary["evaluation"] = {split: asdict(results[-1]) for split, results in self.evaluations.items()}
        summary |= self.totals.summary()
        summary["seconds"] = {stage: round(spent, 2) for stage, spent in self.stage_s.items()}
        return summary

    def _add_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.totals.add(metrics)
        self._progress.add_step(step, metrics)

    def _keep_evaluation(self, split: str, result: Evaluation) -> None:
        """Keep the first evaluation of a split and the last one."""
        self.evaluations[split] = [*self.evaluations.get(split, [])[:1], result]

    def _write(self, record: dict[str, Any]) -> None:
        with writing(self.folder.metrics):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()


def _is_complete(line: str) -> bool:
    """False for a partial last line, which a process leaves that is killed while it writes."""
    try:
        return line.endswith("\n") and "step" in json.loads(line)
    except ValueError:
        return False


def format_evaluation(result: Evaluation) -> str:
    """One line with the results of an evaluation."""
    fields = (
        ""
        if len(result.mean.by_field) == 1
        else "  " + "  ".join(f"{name} {value:.1%}" for name, value in result.mean.by_field.items())
    )
    return (
        f"{result.mean.average:.1%} right (mean@{result.samples}, {result.questions} questions, "
        f"95 % interval {result.mean.low:.1%} to {result.mean.high:.1%}){fields}  entropy {result.entropy_nats:.3f}"
        + (f"  {result.reward_errors} without a reward, counted as wrong" if result.reward_errors else "")
        + (f"  no answer in {result.unparsed_fraction:.0%}" if result.unparsed_fraction > 0.05 else "")
    )


def format_step(step: int, total_steps: int, metrics: Mapping[str, float], left_s: float) -> str:
    """One line with the main metrics of a step."""
    return f"step {step:>{len(str(total_steps))}}/{total_steps}  {_format_metrics(metrics)}  {format_time(left_s)} left"


def _format_metrics(metrics: Mapping[str, float]) -> str:
    if "learner/loss" in metrics:
        learned = f"loss {metrics['learner/loss']:.4f}  entropy {metrics.get('policy/entropy_nats', 0.0):.3f}"
        if "demopsd/alpha_mean" in metrics:
            learned += f"  alpha {metrics['demopsd/alpha_mean']:.3f}"
        learned += f"  active {metrics['rollout/learned_fraction']:.0%}"
        if "rollout/groups_learnable_fraction" in metrics:  # runs of earlier versions have none
            learned += f"  groups {metrics['rollout/groups_learnable_fraction']:.0%}"
    else:
        learned = "nothing to learn from: no group gives the method a training example"
    if "mismatch/logp_diff_max" in metrics:
        learned += f"  mismatch {metrics['mismatch/logp_diff_max']:.0e}"
    return (
        f"reward {metrics['rollout/reward_mean']:.3f}  {learned}"
        f"  {metrics['perf/step_s']:.1f} s  {metrics['perf/samples_per_s']:.0f} samples/s"
    )
