"""The tables of `benchmarks.plan`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from demopsd_dist.planning.calibration import MeasuredRun, fitted, measured_from
from demopsd_dist.planning.default_efficiencies import STAGES, Calibration
from demopsd_dist.planning.hardware import Device, DeviceCluster
from demopsd_dist.planning.splits import ranked
from demopsd_dist.planning.step_time import RunPlan, plan

Row = dict[str, Any]
GOAL = 0.25


def report(found: Row) -> Iterator[str]:
    fleet = DeviceCluster(**{**found["fleet"], "device": Device(**found["fleet"]["device"])})
    device = fleet.device
    rows = [row for row in found["measured"] if not row["split_of"]]
    known = [measured_from(row) for row in rows if row["fits"]]
    figures = fitted(fleet, known, "plan-cpu.json")
    yield from (
        "# The planner, checked",
        "",
        f"{fleet.size} CPU cores, each {device.float32_tflops * 1e3:.0f} GFLOP/s in float32 and "
        f"{device.memory_gb_per_s:.1f} GB/s, {device.memory_gib:.0f} GiB. Real engines. Seconds are the fastest of "
        "some rounds, as the machine is not alone; each stage by itself. Errors are predicted over measured, less one.",
        "",
        f"Fitted to {len(known)} cases: {', '.join(case.name for case in known)}. Of the others no figure went "
        "into the fit; but which work is counted by itself was decided with their errors in view.",
        "",
    )
    yield from _errors("Predicted", [row for row in rows if not row["fits"]], fleet, figures)
    yield from _errors("Fitted to", [row for row in rows if row["fits"]], fleet, figures)
    yield from _coefficients(figures)
    yield from _splits(found, fleet, figures)
    yield from _simulated(found["simulated"])
    yield from _published(found["published"])


def _errors(title: str, rows: Sequence[Row], fleet: DeviceCluster, figures: Calibration) -> Iterator[str]:
    yield from (f"## {title}", "", "Seconds, measured / predicted, and the error:", "")
    yield "| case | " + " | ".join(STAGES) + " | sum | step by the driver |"
    yield "|" + "---|" * (len(STAGES) + 3)
    made = {row["name"]: _plan(row, fleet, figures) for row in rows}
    for row in rows:
        told = [_compared(row["seconds"].get(stage, 0.0), made[row["name"]].seconds[stage]) for stage in STAGES]
        told.append(_compared(sum(row["seconds"].values()), sum(made[row["name"]].seconds.values())))
        told.append(_compared(row["step_s"], made[row["name"]].step_s))
        yield f"| {row['name']} | " + " | ".join(told) + " |"
    yield from (
        "",
        "GiB of a worker, at its highest:",
        "",
        "| case | rollout | teacher | learner |",
        "|---|---|---|---|",
    )
    for row in rows:
        gib = {one.role: one.gib for one in made[row["name"]].memory}
        yield f"| {row['name']} | " + " | ".join(_compared(row["memory_gib"][role], gib[role]) for role in gib) + " |"
    worst = max(
        (abs(made[row["name"]].step_s / row["step_s"] - 1) for row in rows),
        default=0.0,
    )
    yield from ("", f"The largest error of a step is {worst:.0%}; the goal is {GOAL:.0%}.", "")


def _plan(row: Row, fleet: DeviceCluster, figures: Calibration) -> RunPlan:
    case = measured_from(row)
    return plan(case.job, case.split, fleet, figures)


def _compared(measured: float, predicted: float) -> str:
    if not measured:
        return "–"
    return f"{measured:.3g} / {predicted:.3g} ({predicted / measured - 1:+.0%})"


def _coefficients(figures: Calibration) -> Iterator[str]:
    yield from (
        "## Coefficients",
        "",
        "| stage | share of roofline | attention | weights | links | ms a call | ms a call and layer | ms an item |",
    )
    yield "|---|---|---|---|---|---|---|---|"
    for stage, found in figures.stages.items():
        reached = " | ".join(
            f"{share:.2f}" if share < 1e6 else "–"
            for share in (found.efficiency, found.attention, found.weights, found.link)
        )
        overheads = " | ".join(f"{1e3 * value:.3g}" for value in (found.call_s, found.layer_s, found.item_s))
        yield f"| {stage} | {reached} | {overheads} |"
    yield from ("", "| role | GiB of the process | what passes, measured over counted |", "|---|---|---|")
    for role, (base, factor) in figures.memory.items():
        yield f"| {role} | {base:.2f} | {factor:.2f} |"
    yield ""


def _splits(found: Row, fleet: DeviceCluster, figures: Calibration) -> Iterator[str]:
    """Of each job whose splits were measured: all of them, by the measured step."""
    for name in dict.fromkeys(row["split_of"] for row in found["measured"] if row["split_of"]):
        rows = [row for row in found["measured"] if row["split_of"] == name]
        rows.sort(key=lambda row: row["step_s"])
        cases: list[MeasuredRun] = [measured_from(row) for row in rows]
        best = ranked(cases[0].job, fleet, figures)[0].split
        yield from (f"## Splits of {fleet.size} cores: {name}", "", "| split | step, s | predicted |", "|---|---|---|")
        for row, case in zip(rows, cases, strict=True):
            predicted = plan(case.job, case.split, fleet, figures).step_s
            mark = " **recommended**" if case.split == best else ""
            yield f"| {case.split.told()}{mark} | {row['step_s']:.3g} | {predicted:.3g} |"
        place = next((i for i, case in enumerate(cases) if case.split == best), None)
        told = "was not measured" if place is None else f"is number {place + 1} of {len(cases)} measured"
        yield from (
            "",
            f"The recommended split ({best.told()}) {told}. What processes that crowd the cores cost, and that several "
            "threads of a worker are not proposed beside other roles, was taken from these.",
            "",
        )


def _simulated(rows: Sequence[Row]) -> Iterator[str]:
    yield from (
        "## Stages put together",
        "",
        "The real driver with roles that sleep as long as planned, on a clock that jumps (**simulated**: no engine). "
        "Sampling, support, scoring, learning, publishing in seconds; `done` says when a batch's groups are done.",
        "",
        "| sample, support, score, learn, publish | done | ahead | publish | simulated step | planned | error |",
        "|---|---|---|---|---|---|---|",
    )
    for row in rows:
        stages = ", ".join(f"{row['seconds'][stage]:g}" for stage in ("sample", "support", "score", "learn", "publish"))
        yield (
            f"| {stages} | {row['done']} | {row['ahead']} | {row['on_publish']} | {row['simulated_s']:.2f} | "
            f"{row['planned_s']:.2f} | {row['planned_s'] / row['simulated_s'] - 1:+.1%} |"
        )
    worst = max(abs(row["planned_s"] / row["simulated_s"] - 1) for row in rows)
    yield from ("", f"The largest error is {worst:.1%}.", "")


def _published(rows: Sequence[Row]) -> Iterator[str]:
    yield from (
        "## Beside published figures",
        "",
        "Of **other systems on GPUs**, by figures that are **assumed and not calibrated**: an order of magnitude, no "
        "validation. They train and sample on all GPUs in turn, with kernels, parallelism and a method of their own. "
        "The planner is given their samples, lengths and engine sizes, two forwards for log-probabilities, and one "
        "optimizer step where they make four. The paper of DemoPSD publishes no times.",
        "",
        "| source | model | GPUs | published s a step | planned | ratio | published tokens/s/GPU | planned |",
        "|---|---|---|---|---|---|---|---|",
    )
    for row in rows:
        yield (
            f"| {row['source']} | {row['model']} | {row['gpus']} | {row['published_step_s']:.0f} | "
            f"{row['planned_step_s']:.0f} | {row['ratio']:.2f} | {row['published_tokens_per_s_per_gpu']:,.0f} | "
            f"{row['planned_tokens_per_s_per_gpu']:,.0f} |"
        )
    yield ""
