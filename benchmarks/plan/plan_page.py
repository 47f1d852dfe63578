"""Page of `benchmarks.plan`: tables of predictions beside measurements, as Markdown lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from demopsd_dist.planning.calibration import MeasuredRun, cluster_from_dict, fit_calibration, measured_run_from_dict
from demopsd_dist.planning.hardware import DeviceCluster
from demopsd_dist.planning.roofline import STAGES, Calibration
from demopsd_dist.planning.splits import rank_splits
from demopsd_dist.planning.step_time import RunPlan, plan_run

Row = dict[str, Any]
GOAL = 0.25


def report(results: Row) -> Iterator[str]:
    """Lines of the page."""
    cluster = cluster_from_dict(results["cluster"])
    device = cluster.device
    rows = [row for row in results["measured"] if not row["split_of"]]
    fitted = [measured_run_from_dict(row) for row in rows if row["fits"]]
    calibration = fit_calibration(cluster, fitted, "plan-cpu.json")
    yield from (
        "# The planner, checked",
        "",
        f"{cluster.size} CPU cores, each {device.float32_tflops * 1e3:.0f} GFLOP/s in float32 and "
        f"{device.memory_gb_per_s:.1f} GB/s, {device.memory_gib:.0f} GiB. Real engines. Seconds are the fastest of "
        "several rounds, as other processes use the machine too; each stage by itself. Errors are predicted over "
        "measured, minus one.",
        "",
        f"Fitted to {len(fitted)} cases: {', '.join(case.name for case in fitted)}. The other cases "
        "are not part of the fit; but the choice of terms in the model was made knowing their errors.",
        "",
    )
    yield from _errors("Predicted", [row for row in rows if not row["fits"]], cluster, calibration)
    yield from _errors("Fitted to", [row for row in rows if row["fits"]], cluster, calibration)
    yield from _coefficients(calibration)
    yield from _splits(results, cluster, calibration)
    yield from _simulated(results["simulated"])
    yield from _published(results["published"])


def _errors(title: str, rows: Sequence[Row], cluster: DeviceCluster, calibration: Calibration) -> Iterator[str]:
    yield from (f"## {title}", "", "Seconds, measured / predicted, and the error:", "")
    yield "| case | " + " | ".join(STAGES) + " | sum | step by the driver |"
    yield "|" + "---|" * (len(STAGES) + 3)
    plans = {row["name"]: _plan(row, cluster, calibration) for row in rows}
    for row in rows:
        plan = plans[row["name"]]
        cells = [_compared(row["seconds"].get(stage, 0.0), plan.seconds[stage]) for stage in STAGES]
        cells.append(_compared(sum(row["seconds"].values()), sum(plan.seconds.values())))
        cells.append(_compared(row["step_s"], plan.step_s))
        yield f"| {row['name']} | " + " | ".join(cells) + " |"
    yield from (
        "",
        "Peak GiB of a worker:",
        "",
        "| case | rollout | teacher | learner |",
        "|---|---|---|---|",
    )
    for row in rows:
        gib = {one.role: one.gib for one in plans[row["name"]].memory}
        yield f"| {row['name']} | " + " | ".join(_compared(row["memory_gib"][role], gib[role]) for role in gib) + " |"
    worst = max(
        (abs(plans[row["name"]].step_s / row["step_s"] - 1) for row in rows),
        default=0.0,
    )
    yield from ("", f"The largest error of a step is {worst:.0%}; the goal is {GOAL:.0%}.", "")


def _plan(row: Row, cluster: DeviceCluster, calibration: Calibration) -> RunPlan:
    case = measured_run_from_dict(row)
    return plan_run(case.workload, case.split, cluster, calibration)


def _compared(measured: float, predicted: float) -> str:
    if not measured:
        return "–"
    return f"{measured:.3g} / {predicted:.3g} ({predicted / measured - 1:+.0%})"


def _coefficients(calibration: Calibration) -> Iterator[str]:
    yield from (
        "## Coefficients",
        "",
        "| stage | share of roofline | attention | weights | links | ms a call | ms a call and layer | ms an item |",
    )
    yield "|---|---|---|---|---|---|---|---|"
    for stage, coefficients in calibration.stages.items():
        reached = " | ".join(
            f"{share:.2f}" if share < 1e6 else "–"
            for share in (coefficients.efficiency, coefficients.attention, coefficients.weights, coefficients.link)
        )
        overheads = " | ".join(
            f"{1e3 * value:.3g}" for value in (coefficients.call_s, coefficients.layer_s, coefficients.item_s)
        )
        yield f"| {stage} | {reached} | {overheads} |"
    yield from ("", "| role | GiB of the process | transient memory, measured over counted |", "|---|---|---|")
    for role, (base, factor) in calibration.memory.items():
        yield f"| {role} | {base:.2f} | {factor:.2f} |"
    yield ""


def _splits(results: Row, cluster: DeviceCluster, calibration: Calibration) -> Iterator[str]:
    """Table of the measured splits of each workload, the fastest first."""
    for name in dict.fromkeys(row["split_of"] for row in results["measured"] if row["split_of"]):
        rows = [row for row in results["measured"] if row["split_of"] == name]
        rows.sort(key=lambda row: row["step_s"])
        cases: list[MeasuredRun] = [measured_run_from_dict(row) for row in rows]
        best = rank_splits(cases[0].workload, cluster, calibration)[0].split
        yield from (
            f"## Splits of {cluster.size} cores: {name}",
            "",
            "| split | step, s | predicted |",
            "|---|---|---|",
        )
        for row, case in zip(rows, cases, strict=True):
            predicted = plan_run(case.workload, case.split, cluster, calibration).step_s
            mark = " **recommended**" if case.split == best else ""
            yield f"| {case.split.label()}{mark} | {row['step_s']:.3g} | {predicted:.3g} |"
        rank = next((i for i, case in enumerate(cases) if case.split == best), None)
        result = "was not measured" if rank is None else f"is number {rank + 1} of {len(cases)} measured"
        yield from (
            "",
            f"The recommended split ({best.label()}) {result}. The cost of more processes than cores, and the rule "
            "that a worker gets one thread beside other roles, were taken from these.",
            "",
        )


def _simulated(rows: Sequence[Row]) -> Iterator[str]:
    yield from (
        "## Combining the stages",
        "",
        "The real driver with roles that sleep for the planned seconds, on a clock that skips waits (**simulated**: no "
        "engine). Stages in seconds; `done` is when a batch's groups are done.",
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
        "**Other systems on GPUs**, planned with efficiencies that are **assumed and not calibrated**: an order of "
        "magnitude, no validation. They train and sample on all GPUs in turn, with kernels, parallelism and a method "
        "of their own. The planner is given their samples, lengths and engine sizes, two forwards for "
        "log-probabilities, and one optimizer step where they make four. The paper of DemoPSD publishes no times.",
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
