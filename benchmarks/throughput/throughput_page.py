"""Tables and plot of a throughput sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common.intervals import RatioInterval, half_width, paired_ratio
from benchmarks.throughput.sweep import FACTORS, STAGES, Factor

Row = dict[str, Any]


def values(row: Row, *keys: str) -> list[float]:
    """A figure of each round, by its path of keys; empty if the point lacks it."""
    level: list[Any] = row["rounds"]
    for key in keys:
        level = [entry[key] for entry in level if key in entry]
    return level


def mean(row: Row, *keys: str) -> float | None:
    """Mean over the rounds; None where the point has no such figure."""
    of_rounds = values(row, *keys)
    return fmean(of_rounds) if of_rounds else None


def format_value(value: float | None) -> str:
    """Value with three digits, or without decimals from 100 on; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def format_mean(of_rounds: Sequence[float]) -> str:
    """Mean ± half of the 95 % interval; a dash for no values."""
    if not of_rounds:
        return "–"
    margin = half_width(of_rounds)
    return format_value(fmean(of_rounds)) + (f" ± {format_value(margin)}" if margin < float("inf") else "")


def format_ratio(ratio: RatioInterval) -> str:
    """Ratio, with its interval if that is known."""
    if ratio.high == float("inf"):
        return f"{ratio.value:.2f}"
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table and an empty line."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def report(sweep: Row) -> list[str]:
    """Lines of the page."""
    machine = sweep["machine"]
    measured = [row for row in sweep["points"] if row["rounds"]]
    loads = [load for row in measured for load in values(row, "load")]
    where = f"{machine['nodes']} node{'s' if machine['nodes'] > 1 else ''}, {machine['cpus']:g} CPU cores"
    where += f", {machine['gpus']:g} GPUs ({sweep['device']})" if sweep["device"] != "cpu" else ", no GPU used"
    rounds = max((len(row["rounds"]) for row in measured), default=0)
    lines = [
        "# Throughput of whole runs",
        "",
        f"`{sweep['config']}`{' with `' + ' '.join(sweep['overrides']) + '`' if sweep['overrides'] else ''}; {where} "
        f"({machine['architecture']}). Real engines, actors and driver. Rounds, points in turn: {rounds}. "
        f"Steps of a run: {sweep['warm_up']} to warm up and {sweep['steps']} that count. ± and [ ] are 95 % intervals "
        "over the rounds (Student's t).",
        "",
    ]
    if loads:
        lines += [
            f"Others' work on the machine: load average {min(loads):.1f} to {max(loads):.1f} just before the runs "
            "(which includes the rest of the previous run's load).",
            "",
        ]
    lines += [f"**Failed:** {row['label']}: {row['failed']}" for row in sweep["points"] if row["failed"]]
    return [*lines, *_end_to_end(measured), *_scaling(measured), *_stages(measured), *_memory(measured)]


def _end_to_end(rows: Sequence[Row]) -> list[str]:
    cells = []
    for row in rows:
        per_device = [value / row["devices"]["all"] for value in values(row, "tokens_per_s")]
        cells.append(
            [
                row["label"],
                row["roles"],
                *(format_mean(values(row, key)) for key in ("samples_per_s", "tokens_per_s")),
                format_value(row["devices"]["all"]),
                format_value(fmean(per_device)),
                format_mean(values(row, "step_s")),
                format_value(mean(row, "start_s")),
            ]
        )
    header = ["point", "roles", "samples/s", "tokens/s", "devices", "tokens/s a device", "s a step", "s to start"]
    return [
        "## End to end",
        "",
        "Response tokens sampled, by the whole step's time. Devices are the GPUs claimed, or on CPU the cores that the "
        "roles' threads can keep busy.",
        "",
        *markdown_table(header, cells),
    ]


def _stages(rows: Sequence[Row]) -> list[str]:
    cells = []
    for row in rows:
        for stage in STAGES:
            spent, rates = values(row, "stage_s", stage), values(row, "stage_tokens_per_s", stage)
            devices = row["devices"].get(stage)
            if spent and fmean(spent):
                share = fmean(spent) / fmean(values(row, "step_s"))
                each = format_value(fmean(rates) / devices) if rates and devices else "–"
                cells.append(
                    [
                        row["label"],
                        stage,
                        format_mean(spent),
                        f"{share:.0%}",
                        format_mean(rates),
                        format_value(devices),
                        each,
                    ]
                )
    header = ["point", "stage", "s a step", "of the step", "tokens/s", "devices", "tokens/s a device"]
    return [
        "## By stage",
        "",
        "`sample`, `support` and `score` overlap, so that the shares may add up to more than 1. Tokens are the "
        "response tokens sampled, of the other stages those learned from.",
        "",
        *markdown_table(header, cells),
    ]


def _memory(rows: Sequence[Row]) -> list[str]:
    roles = list(dict.fromkeys(role for row in rows for figures in row["rounds"] for role in figures["memory_gib"]))
    kinds = [("memory_gib", "GiB"), ("gpu_memory_gib", "GPU GiB")]
    columns = [(kind, role, f"{role}, {unit}") for kind, unit in kinds for role in roles]
    columns = [column for column in columns if any(values(row, *column[:2]) for row in rows)]
    cells = [[row["label"], *(format_value(max(values(row, *c[:2]), default=None)) for c in columns)] for row in rows]
    return [
        "## Peak memory by role",
        "",
        "Of the largest worker of a role, since its start, in any round. On the host: its process, with the shared "
        "pages that it has mapped. On a GPU: what torch had reserved.",
        "",
        *markdown_table(["point", *(title for *_, title in columns)], cells),
    ]


@dataclass(frozen=True)
class SweepStep:
    """A point beside the one that has the smallest value of one factor, and the same values of the others."""

    factor: Factor
    row: Row
    first: Row

    def times(self, *keys: str) -> RatioInterval | None:
        """Ratio of a figure to the first point's, round by round."""
        own, first = values(self.row, *keys), values(self.first, *keys)
        count = min(len(own), len(first))
        return paired_ratio(own[:count], first[:count]) if count else None

    @property
    def label(self) -> str:
        """`zero 0 → 2`, and in brackets what else the sweep varies."""
        name = self.factor.name
        other_changes = [word for word in self.row["label"].split() if not word.startswith(f"{name}=")]
        change = f"{name} {self.first['settings'][name]} → {self.row['settings'][name]}"
        return change + (f" ({' '.join(other_changes)})" if other_changes else "")

    @property
    def workers(self) -> float:
        """Ratio of the factor's values, which are numbers of workers."""
        return self.row["settings"][self.factor.name] / self.first["settings"][self.factor.name]


def steps_of(rows: Sequence[Row]) -> Iterator[SweepStep]:
    """Pairs of points that differ in one factor only."""
    for factor in FACTORS:
        lines: dict[tuple[int, ...], list[Row]] = {}
        for row in rows:
            other_values = tuple(value for name, value in row["settings"].items() if name != factor.name)
            lines.setdefault(other_values, []).append(row)
        for line in lines.values():
            if len(line) > 1:
                first = min(line, key=lambda row: row["settings"][factor.name])
                ordered = sorted(line, key=lambda row: row["settings"][factor.name])
                yield from (SweepStep(factor, row, first) for row in ordered if row is not first)


def _scaling(rows: Sequence[Row]) -> list[str]:
    cells = []
    for step in steps_of(rows):
        total = step.times("samples_per_s")
        if total is None:
            continue
        stage = step.factor.scales
        stage_ratio = step.times("stage_tokens_per_s", stage) if stage else None
        cells.append(
            [
                step.label,
                format_ratio(total),
                f"{total.value / step.workers:.0%}" if stage else "–",
                f"{stage} {format_ratio(stage_ratio)}" if stage_ratio else "–",
                f"{stage_ratio.value / step.workers:.0%}" if stage_ratio else "–",
            ]
        )
    if not cells:
        return []
    return [
        "## Scaling",
        "",
        "Times the first point's samples/s, round by round, and the same of the tokens/s of the stage that has more "
        "workers. An efficiency is that by the number of workers, relative to the first point's.",
        "",
        *markdown_table(["points", "samples/s, times", "efficiency", "stage's tokens/s, times", "efficiency"], cells),
    ]


def plot(sweep: Row, path: Path) -> None:
    """Plot a row of bars for each point: samples/s with its rounds, seconds by stage, GiB by role."""
    from matplotlib.figure import Figure

    rows = [row for row in sweep["points"] if row["rounds"]]
    figure = Figure(figsize=(13, 2.0 + 0.75 * len(rows)), layout="constrained")
    speed, stages, memory = figure.subplots(1, 3, sharey=True, width_ratios=[3, 4, 3])
    positions = range(len(rows))
    halves = [half if (half := half_width(values(row, "samples_per_s"))) < float("inf") else 0 for row in rows]
    speed.barh(
        positions,
        [mean(row, "samples_per_s") or 0 for row in rows],
        0.6,
        xerr=halves,
        color="C0",
        alpha=0.55,
        capsize=3,
    )
    for position, row in enumerate(rows):
        rounds = values(row, "samples_per_s")
        speed.plot(rounds, [position] * len(rounds), "k.", ms=4)
    speed.set(title="samples/s: rounds, mean, 95 % interval", xlabel="samples/s", xlim=(0, None))
    speed.set_yticks(positions, [row["label"] for row in rows])
    speed.invert_yaxis()
    _grouped(stages, rows, "stage_s", list(STAGES))
    for position, row in enumerate(rows):
        step_s = mean(row, "step_s") or 0
        stages.plot(
            [step_s, step_s], [position - 0.42, position + 0.42], "k--", lw=1.2, label="step" if not position else None
        )
    stages.set(title="a step, by stage (the first three overlap)", xlabel="s")
    roles = list(dict.fromkeys(role for row in rows for one in row["rounds"] for role in one["memory_gib"]))
    kind = "gpu_memory_gib" if any(values(row, "gpu_memory_gib", role) for row in rows for role in roles) else None
    _grouped(memory, rows, kind or "memory_gib", roles)
    memory.set(title=f"peak memory of a worker{' on its GPU' if kind else ''}", xlabel="GiB")
    for axes in (speed, stages, memory):
        axes.grid(alpha=0.3, axis="x")
        axes.set_axisbelow(True)
    for axes in (stages, memory):
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.62 / len(rows)), ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


def _grouped(axes: Any, rows: Sequence[Row], kind: str, names: Sequence[str]) -> None:
    height = 0.8 / len(names)
    for i, name in enumerate(names):
        positions = [position - 0.4 + (i + 0.5) * height for position in range(len(rows))]
        axes.barh(positions, [mean(row, kind, name) or 0 for row in rows], height, label=name, color=f"C{i}")
