"""Tables and the timeline of `benchmarks.step`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.timed_runs import StepTimer

Row = dict[str, Any]
SHOWN_STAGES = ("sample", "support", "score", "learn", "publish_weights")


def plot_timeline(log: StepTimer, out: Path) -> None:
    """Plot the stages of the last step but one, as bars over time."""
    from matplotlib.figure import Figure

    begin, end = log.step_ends[-3], log.step_ends[-2]
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    for stage, started, ended in log.spans.since(begin):
        if stage in SHOWN_STAGES and started < end:
            index, left = SHOWN_STAGES.index(stage), max(started, begin)
            axes.barh(index, min(ended, end) - left, left=left - begin, color=f"C{index}")
    axes.set_yticks(range(len(SHOWN_STAGES)), SHOWN_STAGES)
    axes.invert_yaxis()
    axes.set_xlabel("seconds since the step before was published")
    axes.set_title("One step of the demo, real engines on two CPU cores")
    figure.savefig(out, dpi=120)


def report(results: Row) -> list[str]:
    """Lines of the page: a section for each kind of measurement that the results have."""
    lines = ["# A step of the driver", ""]
    if "driver" in results:
        rate = results["driver"]["samples_per_s"]
        lines += [f"The driver alone, roles that answer at once: {rate:,.0f} samples/s.", ""]
    if "ledger" in results:
        lines += [_ledger_cost(results), ""]
    if "stages" in results:
        lines += [*_simulated_stages(results["stages"]), ""]
    if "scaling" in results:
        lines += [*_scaling(results["scaling"]), ""]
    if "real" in results:
        lines += [
            "The demo on **real engines**, two CPU cores (stages overlap):",
            "",
            "| figure | value |",
            "|---|---|",
            *(f"| {key} | {value:.2f} |" for key, value in results["real"].items()),
            "",
        ]
    return lines


def _ledger_cost(results: Row) -> str:
    spent_us = results["ledger"]["us_per_sample"]
    share = spent_us * 1e-6 * results["driver"]["samples_per_s"]
    text = (
        f"The ledger takes {spent_us:.1f} µs a sample, of five lines on disk: {share:.1%} of the time of the driver "
        "alone, which has no engine to wait for."
    )
    if "real" in results:
        text += f" Of a step of the demo, {spent_us * 1e-6 * results['real']['samples_per_s']:.2%}."
    return text


def _simulated_stages(rows: Sequence[Row]) -> list[str]:
    lines = [
        "**Simulated engines** that sleep; driver, hand-over and Ray actors are real. `spread` is the deviation of "
        "the logarithm of a group's time. `sample` is that of engines which a driver without any cost keeps busy: "
        "with nothing ahead until a step's last group is done, else never idle.",
        "",
        "| workers | ahead | spread | sample, s | score | learn + publish | step, s | / sum | / slowest | age |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        stages = " | ".join(f"{row['stages_s'][name]:.2f}" for name in ("sample", "score", "learn"))
        lines.append(
            f"| {row['workers']} | {row['ahead']} | {row['spread']:g} | {stages} | {row['step_s']:.2f} | "
            f"{row['to_sum']:.3f} | {row['to_slowest']:.3f} | {row['age_steps_max']:.0f} |"
        )
    return lines


def _scaling(rows: Sequence[Row]) -> list[str]:
    one = rows[0]
    lines = [
        "Scaling (**simulated**, ahead 1, as many prompts a worker): share of the ideal is samples/s over that of "
        "engines that are never idle.",
        "",
        "| workers | samples/s | share of the ideal | against one worker |",
        "|---|---|---|---|",
    ]
    for row in rows:
        ideal = row["stages_s"]["sample"] / row["step_s"]
        times = row["samples_per_s"] / one["samples_per_s"] * one["workers"]
        lines.append(f"| {row['workers']} | {row['samples_per_s']:,.0f} | {ideal:.1%} | {times:.1f}x |")
    return lines
