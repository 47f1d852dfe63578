"""Table and curve of the arms of an experiment that differ in the dose of alpha alone (`dose` of its file)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from benchmarks.experiment.experiment_page import Table, columns_of, format_value

COLUMNS = (
    "mean alpha",
    "test mean@k",
    "test pass@k",
    "ood mean@k",
    "entropy, nats",
    "I(answer), teacher, nats",
    "I(answer), target, nats",
    "early answer, test",
    "response tokens",
    "KL(initial‖student), nats",
)
PLOTTED = ("test mean@k", "ood mean@k", "entropy, nats", "I(answer), target, nats")


def write_dose(table: Table, doses: Mapping[str, float], out: Path) -> None:
    """Write `dose-seed-0.md` and `.png`, named by the seeds that all these arms have: means over them, or nothing where
    they share none.

    Args:
        doses: alpha_max of each arm; 0 for one without a gate.
    """
    present = {arm: dose for arm, dose in doses.items() if arm in table}
    if len(present) < 2:
        return
    seeds = set.intersection(*({record["summary"]["seed"] for record in table[arm]} for arm in present))
    if not seeds:
        return
    columns = columns_of(table)
    rows: list[tuple[float, str, dict[str, float | None]]] = []
    for arm, dose in sorted(present.items(), key=lambda item: item[1]):
        records = [record for record in table[arm] if record["summary"]["seed"] in seeds]
        values: dict[str, float | None] = {}
        for name in COLUMNS:
            measured = [value for record in records if (value := columns[name](record)) is not None]
            values[name] = fmean(measured) if measured else None
        rows.append((dose, arm, values))
    lines = [
        "# The dose of alpha",
        "",
        "One seed: differences of a few points are noise." if len(seeds) == 1 else f"Means over {len(seeds)} seeds.",
        "",
        "| alpha at most | arm | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 2) + "|",
        *(
            f"| {dose:g} | {arm} | " + " | ".join(format_value(name, value) for name, value in values.items()) + " |"
            for dose, arm, values in rows
        ),
    ]
    stem = f"dose-seed{'s' if len(seeds) > 1 else ''}-" + "-".join(map(str, sorted(seeds)))
    (out / f"{stem}.md").write_text("\n".join(lines) + "\n")
    plot_dose([(dose, values) for dose, _, values in rows], out / f"{stem}.png")


def plot_dose(rows: list[tuple[float, dict[str, float | None]]], path: Path) -> None:
    """Plot each of `PLOTTED` against the dose."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(PLOTTED), figsize=(4 * len(PLOTTED), 3.4))
    for name, axis in zip(PLOTTED, axes, strict=True):
        points = [(dose, value) for dose, values in rows if (value := values[name]) is not None]
        axis.plot([dose for dose, _ in points], [value for _, value in points], marker="o")
        axis.set(title=name, xlabel="alpha at most", ylim=(0, None))
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
