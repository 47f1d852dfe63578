"""Table, CSV and plots of an experiment, from the records of its runs. Intervals are over seeds."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common.intervals import half_width, half_width_of_average
from benchmarks.experiment.experiment_file import Experiment
from benchmarks.experiment.run_outcomes import evaluations_of, outcome_lines
from benchmarks.experiment.run_records import Record, pairs_by_seed

Table = dict[str, list[Record]]
"""Records of each arm, one a seed; an arm may have fewer seeds than others."""
Column = Callable[[Record], float | None]
"""Value of a record in one column; None where the experiment did not measure it."""


def _test_split(record: Record) -> Record:
    return record["summary"]["evaluation"]["test"]


def _mean_of_split(name: str) -> Column:
    """Column of the mean@k of a split."""

    def column(record: Record) -> float | None:
        split = record["summary"]["evaluation"].get(name)
        return split["mean"]["average"] if split else None

    return column


def _mean_of_field(name: str) -> Column:
    return lambda record: _test_split(record)["mean"]["by_field"][name]


def _summary(key: str) -> Column:
    return lambda record: record["summary"].get(key)


def _leakage_ratio(record: Record) -> float | None:
    target, teacher = (record["summary"].get(f"{name}_leakage_nats") for name in ("target", "teacher"))
    return target / teacher if target is not None and teacher else None


def _last_curve(key: str) -> Column:
    """Column of the last value of a curve over the steps."""
    return lambda record: (record["curves"].get(key) or [None])[-1]


def _best(record: Record) -> float | None:
    """Highest mean@k of the run's evaluations; None unless it has more than two."""
    rows = evaluations_of(record, "test")
    return max(row["mean"] for row in rows) if len(rows) > 2 else None


def _fall(record: Record) -> float | None:
    """Difference of the last mean@k from the best."""
    best = _best(record)
    return None if best is None else best - evaluations_of(record, "test")[-1]["mean"]


def columns_of(table: Table) -> dict[str, Column]:
    """Columns of the CSV, in order."""
    fields = _test_split(next(iter(table.values()))[0])["mean"]["by_field"]
    return {
        "test mean@k": _mean_of_split("test"),
        **{f"test {name}": _mean_of_field(name) for name in fields},
        "test maj@k": lambda r: _test_split(r)["majority"]["average"],
        "test pass@k": lambda r: _test_split(r)["passes"][str(_test_split(r)["samples"])]["average"],
        "test best@k (verl)": lambda r: _test_split(r)["best"]["average"],
        "test best in the run": _best,
        "test fall from it": _fall,
        "ood mean@k": _mean_of_split("ood"),
        "entropy, nats": lambda r: _test_split(r)["entropy_nats"],
        "KL(q‖s) / KL(r‖s)": _leakage_ratio,
        "I(answer), teacher, nats": _summary("answers_teacher_nats"),
        "I(answer), target, nats": _summary("answers_target_nats"),
        "I(answer), M": _summary("answers_contexts_mean"),
        "early answer, test": _mean_of_split("early/test"),
        "early answer, train": _mean_of_split("early/train"),
        "mentions a solution": lambda r: _test_split(r)["behaviour"]["mentions_solution"],
        "answers first": lambda r: _test_split(r)["behaviour"]["answers_first"],
        "answer off its working": lambda r: _test_split(r)["behaviour"]["unsupported"],
        "no answer": lambda r: _test_split(r)["unparsed_fraction"],
        "response tokens": lambda r: _test_split(r)["response_tokens_mean"],
        "repeated": _last_curve("rollout/repeated_fraction"),
        "KL(initial‖student), nats": _last_curve("drift/initial_kl_nats"),
        "mean alpha": _summary("alpha_mean"),
        "steps": _summary("steps"),
        "seconds": _summary("wall_s"),
    }


PERCENT = ("test", "ood", "early", "mentions", "answers first", "answer off", "no answer", "repeated")
"""Beginnings of the columns that are shown in percent."""


COMPARED = (("test mean@k", 100, 1), ("test pass@k", 100, 1), ("ood mean@k", 100, 1), ("entropy, nats", 1, 4))
"""Columns whose paired differences the page has, each with a scale and a number of digits."""


def format_value(name: str, value: float | None) -> str:
    """A value of the column `name` as text; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.1%}" if name.startswith(PERCENT) else f"{value:.4g}"


def format_mean(name: str, values: Sequence[float | None]) -> str:
    """Mean ± half of the 95 % interval of the values that were measured."""
    measured = [value for value in values if value is not None]
    if not measured:
        return "–"
    margin = half_width(measured)
    interval = f" ± {format_value(name, margin).rstrip('%')}" if margin < float("inf") else ""
    return format_value(name, fmean(measured)) + interval


def difference(table: Table, arm: str, other: str, column: Column) -> tuple[float, float] | None:
    """Mean of arm minus other, seed by seed, and its half-width. None where either has no such value."""
    pairs = [(column(a), column(b)) for a, b in pairs_by_seed(table[arm], table.get(other, []))]
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    return (fmean(differences), half_width(differences)) if differences else None


def question_difference(table: Table, arm: str, other: str, split: str) -> tuple[float, float] | None:
    """Mean of arm minus other where they share one seed, question by question and averaged over the fields as mean@k
    is, and its half-width. None where they share more seeds, or not all questions of the split are in the records."""
    pairs = pairs_by_seed(table[arm], table.get(other, []))
    if len(pairs) != 1:
        return None
    ours, theirs = (record.get("by_question", {}).get(split, []) for record in pairs[0])
    evaluation = pairs[0][0]["summary"]["evaluation"].get(split)
    if evaluation is None or not len(ours) == len(theirs) == evaluation["questions"]:
        return None
    differences: dict[str, list[float]] = {}
    for (field, mean), (_, other_mean) in zip(ours, theirs, strict=True):
        differences.setdefault(field, []).append(mean - other_mean)
    of_fields = list(differences.values())
    return fmean(map(fmean, of_fields)), half_width_of_average(of_fields)


def seeds_of(table: Table) -> list[int]:
    """Seeds of all records, in order."""
    return sorted({record["summary"]["seed"] for records in table.values() for record in records})


def write_report(table: Table, rates: dict[str, str], experiment: Experiment, out: Path) -> None:
    """Write `seeds-0-1-2.md`, `.csv` and `.png`, named by the seeds: other seeds have files beside these."""
    columns = columns_of(table)
    stem = "seeds-" + "-".join(map(str, seeds_of(table)))
    with (out / f"{stem}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "seed", "learning rate", *columns])
        for arm, records in table.items():
            for record in records:
                values = ["" if (value := column(record)) is None else f"{value:.6g}" for column in columns.values()]
                writer.writerow([arm, record["summary"]["seed"], rates.get(arm, ""), *values])
    (out / f"{stem}.md").write_text(markdown(table, columns, rates, experiment))
    plot(table, columns, out / f"{stem}.png")


def markdown(table: Table, columns: dict[str, Column], rates: dict[str, str], experiment: Experiment) -> str:
    """The table of all arms, and their differences from one arm."""
    compared_with, grid = experiment.compared_with, experiment.tuning.learning_rates
    first = next(iter(table.values()))
    test = _test_split(first[0])
    seeds = seeds_of(table)
    planned = {arm: len(experiment.arms[arm].seeds or seeds) for arm in table if arm in experiment.arms}
    fewer = [f"{arm} {len(records)}" for arm, records in table.items() if len(records) < planned.get(arm, len(seeds))]
    chosen = (
        f"Each arm's learning rate was chosen among {', '.join(f'{rate:g}' for rate in grid)} on validation questions, "
        "with another seed."
        if grid
        else "The learning rate was given, not chosen."
    )
    lines = [
        "# Methods and controls on one task",
        "",
        f"Seeds {', '.join(map(str, seeds))}; k = {test['samples']} responses to each of {test['questions']} test "
        f"questions. Values are means over the seeds ± half of their 95 % interval (Student's t over seeds). {chosen}"
        + (f" Fewer seeds so far: {', '.join(fewer)}." if fewer else ""),
        "",
        *_rows(table, columns, rates),
        "",
        f"## Difference from {compared_with}, seed by seed",
        "",
        *_differences(table, columns, compared_with),
    ]
    if outcomes := outcome_lines(table, experiment.leaks_compared_with, experiment.leak_margin):
        lines += ["", *outcomes]
    return "\n".join(lines) + "\n"


def _differences(table: Table, columns: dict[str, Column], compared_with: str) -> list[str]:
    """Rows of the arms with their differences from one, and the text above them."""
    rows, intervals, by_question = [], 0, False
    for arm in table:
        if arm == compared_with:
            continue
        cells = []
        for name, scale, digits in COMPARED:
            paired = difference(table, arm, compared_with, columns[name])
            split = name.removesuffix(" mean@k")
            if split != name and (of_questions := question_difference(table, arm, compared_with, split)):
                paired, by_question = of_questions, True
            intervals += paired is not None and paired[1] < float("inf")
            cells.append(_difference_cell(*paired, scale, digits) if paired else "–")
        rows.append(f"| {arm} | " + " | ".join(cells) + " |")
    return [
        "Accuracies in percentage points, with the 95 % interval of paired differences; **bold** where it excludes 0. "
        f"Of the {intervals} intervals here one in twenty would be bold by chance alone."
        + (
            " Arms that share one seed have their mean@k paired by question, which says nothing about other seeds."
            if by_question
            else ""
        ),
        "",
        "| arm | test | test pass@k | ood | entropy, nats |",
        "|---|---|---|---|---|",
        *rows,
    ]


def _difference_cell(mean: float, half: float, scale: float, digits: int) -> str:
    if half == float("inf"):  # of one seed
        return f"{mean * scale:+.{digits}f}"
    text = f"{mean * scale:+.{digits}f} ± {half * scale:.{digits}f}"
    return f"**{text}**" if abs(mean) > half else text


def _rows(table: Table, columns: dict[str, Column], rates: dict[str, str]) -> list[str]:
    """Arms as rows, in two tables: one with all columns would be too wide for a screen."""
    names = list(columns)
    cut = names.index("entropy, nats")
    lines: list[str] = []
    for half in (names[:cut], names[cut:]):
        lines += ["| arm | learning rate | " + " | ".join(half) + " |", "|---" * (len(half) + 2) + "|"]
        for arm, records in table.items():
            cells = [format_mean(name, [columns[name](record) for record in records]) for name in half]
            lines.append(f"| {arm} | {rates.get(arm, '–')} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines[:-1]


def plot(table: Table, columns: dict[str, Column], path: Path) -> None:
    """Plot training reward and entropy over the steps, and the final accuracies."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    over_steps = {arm: records for arm, records in table.items() if _best(records[0]) is not None}
    figure, axes = plt.subplots(3 if over_steps else 2, 2, figsize=(13, 13 if over_steps else 9))
    palette = plt.get_cmap("tab20")
    trained = [arm for arm in table if table[arm][0]["curves"]]
    colours = {arm: palette(trained.index(arm) % 20) if arm in trained else "grey" for arm in table}
    for key, axis, title in (
        ("rollout/reward_mean", axes[0, 0], "share of right training rollouts"),
        ("policy/entropy_nats", axes[0, 1], "entropy of a token, nats"),
    ):
        _plot_curves(axis, {arm: table[arm] for arm in trained}, key, colours)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    axes[0, 1].legend(fontsize=8)
    for name, axis in (("test mean@k", axes[1, 0]), ("ood mean@k", axes[1, 1])):
        _plot_accuracies(axis, table, columns[name], colours)
        axis.set(title=f"{name}, %, each seed and 95 % interval", xlim=(0, None))
        axis.grid(alpha=0.3, axis="x")
    if over_steps:
        for key, axis, title in (
            ("mean", axes[2, 0], "test mean@k over the steps, %"),
            ("pass", axes[2, 1], "test pass@k over the steps, %"),
        ):
            _plot_evaluations(axis, over_steps, key, colours)
            axis.set(title=title, xlabel="step")
            axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_curves(axis: Any, table: Table, key: str, colours: dict[str, Any]) -> None:
    """A line for each arm: means over seeds, each the average of the last five steps."""
    for arm, records in table.items():
        rows = zip(*(record["curves"].get(key, []) for record in records), strict=False)
        values = smoothed([fmean(row) for row in rows])
        axis.plot(range(1, len(values) + 1), values, label=arm, color=colours[arm], lw=1.6)


def _plot_evaluations(axis: Any, table: Table, key: str, colours: dict[str, Any]) -> None:
    """A line for each arm: means over its seeds at each evaluation during the run."""
    for arm, records in table.items():
        steps = [row["step"] for row in evaluations_of(records[0], "test")]
        rows = zip(*([100 * row[key] for row in evaluations_of(record, "test")] for record in records), strict=False)
        means = [fmean(row) for row in rows]
        axis.plot(steps[: len(means)], means, marker="o", ms=3, color=colours[arm], lw=1.4)


def _plot_accuracies(axis: Any, table: Table, column: Column, colours: dict[str, Any]) -> None:
    """A bar for each arm, with its interval and a point for each seed."""
    for i, (arm, records) in enumerate(table.items()):
        values = [100 * value for record in records if (value := column(record)) is not None]
        if not values:
            continue
        half = half_width(values)
        axis.barh(i, fmean(values), xerr=half if half < 1e9 else 0, color=colours[arm], alpha=0.55, capsize=3)
        axis.plot(values, [i] * len(values), "k.", ms=4)
    axis.set_yticks(range(len(table)), list(table))
    axis.invert_yaxis()


def smoothed(values: Sequence[float], width: int = 5) -> list[float]:
    """Running mean over the last `width` values."""
    return [fmean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]
