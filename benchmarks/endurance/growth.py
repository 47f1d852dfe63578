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
        late_per_1000_steps: Theil-Sen slope over the second half of the readings: what levels off has none there.
    """

    name: str
    begin: float
    end: float
    per_1000_steps: float
    low: float
    high: float
    late_per_1000_steps: float


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
    apart, rise = _pairs(step, value)
    late_apart, late_rise = _pairs(step[len(step) // 2 :], value[len(step) // 2 :])
    far = apart > (step[-1] - step[0]) / 3
    low, high = np.quantile(rise[far] / apart[far], [0.25, 0.75])
    tenth = max(len(step) // 10, 1)
    return Growth(
        name,
        begin=median(values[:tenth]),
        end=median(values[-tenth:]),
        per_1000_steps=_median_slope(apart, rise) * 1000,
        low=float(low) * 1000,
        high=float(high) * 1000,
        late_per_1000_steps=_median_slope(late_apart, late_rise) * 1000,
    )


def _pairs(step: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps between all pairs of readings, and the rise of the value between them."""
    return step[None, :] - step[:, None], value[None, :] - value[:, None]


def _median_slope(apart: np.ndarray, rise: np.ndarray) -> float:
    return float(np.median(rise[apart > 0] / apart[apart > 0]))


def all_growth(readings: Sequence[Usage], steps: int) -> list[Growth]:
    """Growth of every quantity after the warm-up, over the readings that found it: the last may find no worker, since
    the run was ending them. A quantity that fewer than nine in ten readings found is left out."""
    late = [reading for reading in readings if reading.step >= WARM_UP * steps]
    rows = [(reading.step, reading.values()) for reading in late]
    names = sorted({name for _, row in rows for name in row})
    found = {name: [(step, row[name]) for step, row in rows if name in row] for name in names}
    return [
        growth_of(name, [step for step, _ in pairs], [value for _, value in pairs])
        for name, pairs in found.items()
        if len(pairs) >= 0.9 * len(rows)
    ]


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
        "brackets the middle half of the slopes between readings far apart. The last column is the slope of the second "
        "half of these readings. Memory is what only this role's processes hold.",
        "",
        "| quantity | after the warm-up | at the end | growth per 1,000 steps | in the second half |",
        "|---|---|---|---|---|",
        *(
            f"| {one.name} | {one.begin:,.1f} | {one.end:,.1f} | {one.per_1000_steps:+.2f} "
            f"({one.low:+.2f} to {one.high:+.2f}) | {one.late_per_1000_steps:+.2f} |"
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
