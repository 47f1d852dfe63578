"""Fit of a quantity's growth over the steps of a run, and the page that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from benchmarks.endurance.usage import Usage

WARM_UP = 0.3  # share of the steps before the fit: caches fill, allocators reach their size
WRITTEN = "written: "


@dataclass(frozen=True)
class Growth:
    """A quantity after the warm-up.

    Attributes:
        begin: median of the first tenth of the readings after the warm-up.
        end: median of the last tenth.
        per_1000_steps: Theil-Sen slope: the median over all pairs of readings.
        low, high: the middle half of the slopes between readings that are at least a third of the run apart.
    """

    name: str
    begin: float
    end: float
    per_1000_steps: float
    low: float
    high: float


def growth_of(name: str, steps: Sequence[int], values: Sequence[float]) -> Growth:
    """Fit one quantity.

    Args:
        steps: of each reading, in order; at least 10 different ones.

    Raises:
        ValueError: fewer readings.
    """
    step, value = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    if len(np.unique(step)) < 10:
        raise ValueError(f"{name}: {len(np.unique(step))} readings after the warm-up; a fit needs 10.")
    apart = step[None, :] - step[:, None]
    rise = value[None, :] - value[:, None]
    slopes = rise[apart > 0] / apart[apart > 0]
    far = apart > (step[-1] - step[0]) / 3
    low, high = np.quantile(rise[far] / apart[far], [0.25, 0.75])
    tenth = max(len(step) // 10, 1)
    return Growth(
        name,
        begin=median(values[:tenth]),
        end=median(values[-tenth:]),
        per_1000_steps=float(np.median(slopes)) * 1000,
        low=float(low) * 1000,
        high=float(high) * 1000,
    )


def all_growth(readings: Sequence[Usage], steps: int) -> list[Growth]:
    """Growth of every quantity that was present in each reading after the warm-up."""
    late = [reading for reading in readings if reading.step >= WARM_UP * steps]
    rows = [reading.values() for reading in late]
    names = [name for name in rows[0] if all(name in row for row in rows)] if rows else []
    at = [reading.step for reading in late]
    return [growth_of(name, at, [row[name] for row in rows]) for name in names]


def report(raw: dict[str, Any]) -> list[str]:
    """Lines of the page."""
    readings = [Usage(**reading) for reading in raw["readings"]]
    steps = raw["steps"]
    growth = all_growth(readings, steps)
    last = readings[-1]
    lines = [
        "# Endurance",
        "",
        f"A real run of {steps:,} steps (Ray, vLLM and DeepSpeed on two CPU cores; the model of 0.86M parameters, "
        f"{raw['samples']:,} samples, {last.seconds / 60:.0f} minutes, {len(readings)} readings): "
        "`python -m benchmarks.endurance`. Settings: "
        + ", ".join(f"`{word}`" for word in raw["words"])
        + f". The run ended with exit code {raw['exit_code']}; its audit found "
        + ("no fault." if not raw["audit"] else "; ".join(raw["audit"]) + "."),
        "",
        f"Fitted after the first {WARM_UP:.0%} of the steps. Growth is the median slope of all pairs of readings; in "
        "brackets the middle half of the slopes between readings far apart. Memory is what only this role's processes "
        "hold.",
        "",
        "| quantity | after the warm-up | at the end | growth per 1,000 steps |",
        "|---|---|---|---|",
        *(
            f"| {one.name} | {one.begin:,.1f} | {one.end:,.1f} | {one.per_1000_steps:+.2f} "
            f"({one.low:+.2f} to {one.high:+.2f}) |"
            for one in growth
            if not one.name.startswith(WRITTEN)
        ),
        "",
        "Memory and shared memory in MiB; files and processes are counts.",
        "",
        "Files that the run has written:",
        "",
        "| kind | at the end, MiB | bytes a step | in 10,000 steps, MiB |",
        "|---|---|---|---|",
        *(
            f"| {one.name.removeprefix(WRITTEN)} | {one.end:,.2f} | {one.per_1000_steps / 1000 * 2**20:,.0f} "
            f"| {one.per_1000_steps * 10:,.1f} |"
            for one in growth
            if one.name.startswith(WRITTEN)
        ),
    ]
    return [*lines, "", *raw.get("remarks", [])]
