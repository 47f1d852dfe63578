"""What a run tells: `metrics.jsonl` always, other sinks as asked, a line a step and a live view on the console, and the
summary."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.live import Live

from demopsd_dist.run_record import replay_batch, samples
from demopsd_dist.run_record.console import Progress, clock
from demopsd_dist.run_record.folder import RunFolder, replace_text
from demopsd_dist.run_record.sinks import Sink, numbers_of
from demopsd_dist.run_record.timeline import Spans
from demopsd_dist.training.evaluate import Evaluation, evaluation_of
from demopsd_dist.util.errors import RunFolderError
from demopsd_dist.util.printable import plain

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
"""Means over the steps, by their name in the summary."""


class RunLog:
    """Used as a context manager: the terminal is given back whatever happens."""

    def __init__(
        self, folder: RunFolder, total_steps: int, console: Console | None = None, sinks: Sequence[Sink] = ()
    ) -> None:
        self.folder = folder
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.stage_s: dict[str, float] = {}
        self.evaluations: dict[str, list[Evaluation]] = {}
        self.steps: list[dict[str, float]] = []
        self.skipped: Mapping[str, int] = {}
        self._total_steps = total_steps
        self._file = folder.metrics.open("a", encoding="utf-8")
        self._sinks = sinks
        self.spans = Spans()
        self.last_step_s = (0.0, 0.0)  # when the last step began and ended, of the monotonic clock
        self._step_stage_s: dict[str, float] = {}
        self._step_started = time.monotonic()
        self._training_s = 0.0
        self._progress = Progress(total_steps)
        self._live = Live(self._progress, console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self._file.close()
        for sink in self._sinks:
            sink.close()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the seconds spent inside to `stage`, of this step and of the run. Stages may overlap."""
        started = time.monotonic()
        try:
            with self.spans.span(stage):
                yield
        finally:
            spent = time.monotonic() - started
            for table in (self.stage_s, self._step_stage_s):
                table[stage] = table.get(stage, 0.0) + spent

    def note(self, text: str) -> None:
        """A line for the reader, outside the rhythm of the steps."""
        self.console.print(text, markup=False)

    def training_starts(self) -> None:
        """The clock of the first step starts now."""
        self._step_started = time.monotonic()
        self._step_stage_s = {}
        if self.console.is_terminal:
            self._live.start()

    def show(self, row: samples.Row) -> None:
        """A response that was just sampled, for the live view."""
        self._progress.show(row)

    def go_back(self, step: int) -> None:
        """To the state after this step, with what the run folder has up to there: at a resume, and where later steps
        are undone. Their lines go to `metrics-undone.jsonl`, their samples away."""
        self._file.close()
        staying: list[str] = []
        undone: list[str] = []
        for line in self.folder.metrics.read_text(encoding="utf-8").splitlines(keepends=True):
            (staying if _whole(line) and json.loads(line)["step"] <= step else undone).append(line)
        if undone:
            with (self.folder.path / "metrics-undone.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(undone)
            replace_text(self.folder.metrics, "".join(staying))
        self._file = self.folder.metrics.open("a", encoding="utf-8")
        self.steps, self.evaluations = [], {}
        for record in map(json.loads, staying):
            if (split := record.pop("evaluation", None)) is not None:
                self.evaluations.setdefault(split, []).append(evaluation_of(record))
            else:
                self.steps.append({key: value for key, value in record.items() if key != "step"})
        self._training_s = sum(metrics["perf/step_s"] for metrics in self.steps)
        samples.forget_after(self.folder.samples, step)
        replay_batch.keep_only(
            self.folder.replay, [there for there in replay_batch.steps(self.folder.replay) if there <= step]
        )
        self._progress.go_back(self.steps)

    @property
    def last_step(self) -> int:
        return len(self.steps)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Record a step; its time runs from the previous call to this one."""
        now = time.monotonic()
        self.last_step_s = (self._step_started, now)
        step_s, self._step_started = now - self._step_started, now
        self._training_s += step_s
        metrics = metrics | {
            "perf/step_s": step_s,
            "perf/samples_per_s": metrics["rollout/samples"] / step_s,
            "perf/tokens_per_s": metrics["rollout/tokens"] / step_s,
        }
        metrics |= {f"time/{stage}_s": spent for stage, spent in self._step_stage_s.items()}
        self._step_stage_s = {}
        self.steps.append(metrics)
        self._write({"step": step, **metrics})
        for sink in self._sinks:
            sink.write(step, metrics)
        self._progress.step(step, metrics)
        self.note(step_line(step, self._total_steps, metrics, self._progress.left_s))

    def evaluation(self, step: int, split: str, result: Evaluation) -> None:
        self.evaluations.setdefault(split, []).append(result)
        self._step_started = time.monotonic()  # the next step's time is its own
        self._write({"step": step, "evaluation": split, **asdict(result)})
        for sink in self._sinks:
            sink.write(step, numbers_of(asdict(result), f"evaluation/{split}"))
        self.note(f"{split:>5} after step {step}: {told(result)}")
        if result.mean.average < 0.1 and not split.startswith("early/"):
            self.note(
                "      for example: " + "  ".join(f"{key} {plain(text[-200:])}" for key, text in result.example.items())
            )

    def summary(self) -> dict[str, Any]:
        """The figures of the run so far; keys are absent where nothing was measured."""
        test, ood = self.evaluations.get("test", []), self.evaluations.get("ood", [])

        def accuracy(index: int) -> dict[str, float]:
            out = {**test[index].mean.by_field, "average": test[index].mean.average}
            return {**out, "ood": ood[index].mean.average} if ood else out

        summary: dict[str, Any] = {"steps": len(self.steps), "skipped_questions": dict(self.skipped)}
        if len(test) > 1:
            summary |= {"accuracy_before": accuracy(0), "entropy_before": test[0].entropy_nats}
        if test:
            summary |= {"accuracy_after": accuracy(-1), "entropy_after": test[-1].entropy_nats}
        summary["evaluation"] = {split: asdict(results[-1]) for split, results in self.evaluations.items()}
        if self.steps:
            summary |= {name: value for name, key in SUMMARISED.items() if (value := self._mean(key)) is not None}
            mismatches = [metrics.get("mismatch/logp_diff_max") for metrics in self.steps]
            summary |= {
                "logp_diff_max": max((value for value in mismatches if value is not None), default=None),
                "samples_per_s": sum(m["rollout/samples"] for m in self.steps) / self._training_s,
            }
        summary["seconds"] = {stage: round(spent, 2) for stage, spent in self.stage_s.items()}
        return summary

    def _mean(self, key: str) -> float | None:
        """Over the steps that have it."""
        values = [metrics[key] for metrics in self.steps if key in metrics]
        return sum(values) / len(values) if values else None

    def _write(self, record: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise RunFolderError(
                f"{self.folder.metrics} cannot be written: {error}. Make room or mend the disk, then resume."
            ) from None


def _whole(line: str) -> bool:
    """Not the half that a process left which was killed while it wrote."""
    try:
        return line.endswith("\n") and "step" in json.loads(line)
    except ValueError:
        return False


def told(result: Evaluation) -> str:
    """An evaluation in a line."""
    fields = (
        ""
        if len(result.mean.by_field) == 1
        else "  " + "  ".join(f"{name} {value:.1%}" for name, value in result.mean.by_field.items())
    )
    return (
        f"{result.mean.average:.1%} right (mean@{result.samples}, {result.questions} questions, "
        f"95 % interval {result.mean.low:.1%} to {result.mean.high:.1%}){fields}  entropy {result.entropy_nats:.3f}"
        + (f"  {result.reward_errors} not marked, taken as wrong" if result.reward_errors else "")
        + (f"  no answer in {result.unparsed_fraction:.0%}" if result.unparsed_fraction > 0.05 else "")
    )


def step_line(step: int, total_steps: int, metrics: Mapping[str, float], left_s: float) -> str:
    """A step in a line."""
    return f"step {step:>{len(str(total_steps))}}/{total_steps}  {_told(metrics)}  {clock(left_s)} left"


def _told(metrics: Mapping[str, float]) -> str:
    """The figures of a step that a reader wants to see go by."""
    if "learner/loss" in metrics:
        learned = f"loss {metrics['learner/loss']:.4f}  entropy {metrics.get('policy/entropy_nats', 0.0):.3f}"
        if "demopsd/alpha_mean" in metrics:
            learned += f"  alpha {metrics['demopsd/alpha_mean']:.3f}"
        learned += f"  active {metrics['rollout/learned_fraction']:.0%}"
    else:
        learned = "nothing to learn from: no group had what the method needs"
    if "mismatch/logp_diff_max" in metrics:
        learned += f"  mismatch {metrics['mismatch/logp_diff_max']:.0e}"
    return (
        f"reward {metrics['rollout/reward_mean']:.3f}  {learned}"
        f"  {metrics['perf/step_s']:.1f} s  {metrics['perf/samples_per_s']:.0f} samples/s"
    )
