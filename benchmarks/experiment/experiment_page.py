"""From the records of an experiment to its table, its CSV and its plots. Intervals are over seeds."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common.intervals import half_width

Record = dict[str, Any]
Table = dict[str, list[Record]]  # arm -> a record a seed, the same seeds for all

Figure = Callable[[Record], float | None]


def _of_test(record: Record) -> Record:
    return record["summary"]["evaluation"]["test"]


def _split(name: str) -> Figure:
    """None where the experiment has not evaluated on it."""

    def figure(record: Record) -> float | None:
        found = record["summary"]["evaluation"].get(name)
        return found["mean"]["average"] if found else None

    return figure


def _field(name: str) -> Figure:
    return lambda record: _of_test(record)["mean"]["by_field"][name]


def _summary(key: str) -> Figure:
    return lambda record: record["summary"].get(key)


def _ratio(record: Record) -> float | None:
    target, teacher = (record["summary"].get(f"{name}_leakage_nats") for name in ("target", "teacher"))
    return target / teacher if target is not None and teacher else None


def figures(table: Table) -> dict[str, Figure]:
    """Columns of the CSV, in order."""
    some = _of_test(next(iter(table.values()))[0])
    return {
        "test mean@k": _split("test"),
        **{f"test {name}": _field(name) for name in some["mean"]["by_field"]},
        "test maj@k": lambda r: _of_test(r)["majority"]["average"],
        "test pass@k": lambda r: _of_test(r)["passes"][str(_of_test(r)["samples"])]["average"],
        "test best@k (verl)": lambda r: _of_test(r)["best"]["average"],
        "ood mean@k": _split("ood"),
        "entropy, nats": lambda r: _of_test(r)["entropy_nats"],
        "KL(q‖s) / KL(r‖s)": _ratio,
        "I(answer), teacher, nats": _summary("answers_teacher_nats"),
        "I(answer), target, nats": _summary("answers_target_nats"),
        "I(answer), M": _summary("answers_contexts_mean"),
        "early answer, test": _split("early/test"),
        "early answer, train": _split("early/train"),
        "mentions a solution": lambda r: _of_test(r)["behaviour"]["mentions_solution"],
        "answers first": lambda r: _of_test(r)["behaviour"]["answers_first"],
        "answer off its working": lambda r: _of_test(r)["behaviour"]["unsupported"],
        "no answer": lambda r: _of_test(r)["unparsed_fraction"],
        "response tokens": lambda r: _of_test(r)["response_tokens_mean"],
        "mean alpha": _summary("alpha_mean"),
        "seconds": _summary("wall_s"),
    }


PERCENT = ("test", "ood", "early", "mentions", "answers first", "answer off", "no answer")


def shown(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if name.startswith(PERCENT) else f"{value:.4g}"


def with_interval(name: str, values: Sequence[float | None]) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return "–"
    half = half_width(there)
    return shown(name, fmean(there)) + (f" ± {shown(name, half).rstrip('%')}" if half < float("inf") else "")


def difference(table: Table, arm: str, other: str, figure: Figure) -> tuple[float, float] | None:
    """Mean of arm minus other, seed by seed, and its half-width. None where either has no such figure."""
    pairs = [(figure(a), figure(b)) for a, b in zip(table[arm], table[other], strict=True)]
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    return (fmean(differences), half_width(differences)) if differences else None


def write_report(table: Table, rates: dict[str, str], compared_with: str, grid: Sequence[float], out: Path) -> None:
    """Writes `seeds-0-1-2.md`, `.csv` and `.png`, so that other seeds have files beside these."""
    columns = figures(table)
    stem = "seeds-" + "-".join(str(record["summary"]["seed"]) for record in next(iter(table.values())))
    with (out / f"{stem}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "seed", "learning rate", *columns])
        for arm, records in table.items():
            for record in records:
                values = ["" if (value := figure(record)) is None else f"{value:.6g}" for figure in columns.values()]
                writer.writerow([arm, record["summary"]["seed"], rates.get(arm, ""), *values])
    (out / f"{stem}.md").write_text(markdown(table, columns, rates, compared_with, grid))
    plot(table, columns, out / f"{stem}.png")


def markdown(table: Table, columns: dict[str, Figure], rates: dict[str, str], compared_with: str, grid: Any) -> str:
    first = next(iter(table.values()))
    test = _of_test(first[0])
    seeds = ", ".join(str(record["summary"]["seed"]) for record in first)
    chosen = (
        f"Each arm's learning rate was chosen among {', '.join(f'{rate:g}' for rate in grid)} on validation questions, "
        "with another seed."
        if grid
        else "The learning rate was given, not chosen."
    )
    lines = [
        "# Methods and controls on one task",
        "",
        f"Seeds {seeds}; k = {test['samples']} responses to each of {test['questions']} test questions. Values are "
        f"means over the seeds ± half of their 95 % interval (Student's t over seeds). {chosen}",
        "",
        *_rows(table, columns, rates),
        "",
        f"## Difference from {compared_with}, seed by seed",
        "",
        "Accuracies in percentage points of mean@k, with the 95 % interval of paired differences; **bold** where it "
        f"leaves out 0. Of the {3 * (len(table) - 1)} figures here one in twenty would be bold by chance alone.",
        "",
        "| arm | test | ood | entropy, nats |",
        "|---|---|---|---|",
    ]
    for arm in table:
        if arm != compared_with:
            cells = []
            for name, scale, digits in (("test mean@k", 100, 1), ("ood mean@k", 100, 1), ("entropy, nats", 1, 4)):
                found = difference(table, arm, compared_with, columns[name])
                cells.append(_difference_cell(*found, scale, digits) if found else "–")
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _difference_cell(mean: float, half: float, scale: float, digits: int) -> str:
    text = f"{mean * scale:+.{digits}f} ± {half * scale:.{digits}f}"
    return f"**{text}**" if abs(mean) > half else text


def _rows(table: Table, columns: dict[str, Figure], rates: dict[str, str]) -> list[str]:
    """Figures as rows, arms as columns would be too wide for a screen: arms are rows, in two tables."""
    names = list(columns)
    cut = names.index("entropy, nats")
    lines: list[str] = []
    for part in (names[:cut], names[cut:]):
        lines += ["| arm | learning rate | " + " | ".join(part) + " |", "|---" * (len(part) + 2) + "|"]
        for arm, records in table.items():
            cells = [with_interval(name, [columns[name](record) for record in records]) for name in part]
            lines.append(f"| {arm} | {rates.get(arm, '–')} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines[:-1]


def plot(table: Table, columns: dict[str, Figure], path: Path) -> None:
    """Training reward and entropy over the steps (means over seeds, five steps smoothed), and the final figures."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(13, 9))
    palette = plt.get_cmap("tab10")
    trained = [arm for arm in table if table[arm][0]["curves"]]
    for key, axis, title in (
        ("rollout/reward_mean", axes[0, 0], "share of right training rollouts"),
        ("policy/entropy_nats", axes[0, 1], "entropy of a token, nats"),
    ):
        for i, arm in enumerate(trained):
            rows = zip(*(record["curves"].get(key, []) for record in table[arm]), strict=False)
            values = smoothed([fmean(row) for row in rows])
            axis.plot(range(1, len(values) + 1), values, label=arm, color=palette(i % 10), lw=1.6)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    axes[0, 1].legend(fontsize=8)
    for name, axis in (("test mean@k", axes[1, 0]), ("ood mean@k", axes[1, 1])):
        for i, (arm, records) in enumerate(table.items()):
            values = [100 * value for record in records if (value := columns[name](record)) is not None]
            if not values:
                continue
            half = half_width(values)
            colour = palette(trained.index(arm) % 10) if arm in trained else "grey"
            axis.barh(i, fmean(values), xerr=half if half < 1e9 else 0, color=colour, alpha=0.55, capsize=3)
            axis.plot(values, [i] * len(values), "k.", ms=4)
        axis.set_yticks(range(len(table)), list(table))
        axis.invert_yaxis()
        axis.set(title=f"{name}, %, each seed and 95 % interval", xlim=(0, None))
        axis.grid(alpha=0.3, axis="x")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def smoothed(values: Sequence[float], width: int = 5) -> list[float]:
    return [fmean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]
