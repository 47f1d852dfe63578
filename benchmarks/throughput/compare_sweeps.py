"""From two sweeps to what changed between them beyond the noise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.common.intervals import RatioInterval, independent_ratio
from benchmarks.throughput.sweep import STAGES
from benchmarks.throughput.throughput_page import Row, ratio_cell, shown, table, values
from demopsd_dist.util.errors import InputError

SMALLEST_CHANGE = 0.01  # less is not told of, however certain


@dataclass(frozen=True)
class SweepChange:
    """A figure of a point, new over old. `less_is_better` for seconds and GiB."""

    point: str
    figure: str
    old: float
    new: float
    ratio: RatioInterval
    less_is_better: bool

    @property
    def beyond_noise(self) -> bool:
        return self.ratio.leaves_out_one and abs(self.ratio.value - 1) >= SMALLEST_CHANGE


def read(path: Path) -> Row:
    """
    Raises:
        InputError: it is no result of this benchmark.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        assert all(row["rounds"] is not None and row["settings"] for row in found["points"])
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(
            f"{path} is no throughput-*.json as benchmarks.throughput writes it ({type(error).__name__}: {error})."
        ) from None
    return found


def _figures(row: Row) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """Title, keys and whether less is better, of everything that is compared."""
    yield "samples/s", ("samples_per_s",), False
    yield "s a step", ("step_s",), True
    yield from ((f"{stage}, s a step", ("stage_s", stage), True) for stage in STAGES)
    for kind, unit in (("memory_gib", "GiB"), ("gpu_memory_gib", "GPU GiB")):
        yield from ((f"{role}, {unit}", (kind, role), True) for role in row["rounds"][0][kind])


def changes(old: Row, new: Row) -> list[SweepChange]:
    """Of the points that both have, in the order of the new."""
    before = {tuple(row["settings"].items()): row for row in old["points"] if row["rounds"]}
    found = []
    for row in new["points"]:
        was = before.get(tuple(row["settings"].items()))
        if was is None or not row["rounds"]:
            continue
        for title, keys, less_is_better in _figures(row):
            here, there = ([value for value in values(side, *keys) if value > 0] for side in (row, was))
            if here and there:
                ratio = independent_ratio(here, there)
                found.append(SweepChange(row["label"], title, fmean(there), fmean(here), ratio, less_is_better))
    return found


def compared(old: Row, new: Row) -> list[str]:
    """What changed beyond the noise, what else differs, and how large a change would have been seen."""
    found = changes(old, new)
    lines = [f"{old['commit']} -> {new['commit']}", ""]
    lines += [f"differs: {name}: {was} -> {now}" for name, was, now in _differences(old, new)]
    lines += _unmatched(old, new)
    if not found:
        return [*lines, "The two have no point in common: nothing to compare."]
    told = [change for change in found if change.beyond_noise]
    if told:
        lines += ["", *table(["point", "figure", "old", "new", "new / old", ""], [_change_cells(c) for c in told])]
    lines += [
        f"{len(told)} of {len(found)} figures changed beyond the noise (95 % interval of the ratio leaves out 1, and "
        f"{SMALLEST_CHANGE:.0%} or more). Of figures that did not change one in twenty would, by chance."
    ]
    distributions = [
        (c.ratio.high / c.ratio.low) ** 0.5 - 1 for c in found if c.figure == "samples/s" and c.ratio.low > 0
    ]
    if distributions:
        lines.append(f"A change of samples/s by about {median(distributions):.0%} would have been seen.")
    else:
        lines.append("Where a side has one round alone its noise is not known, and nothing can be told.")
    lines.append("The intervals know the noise of each sweep, not what changed on the machine between the two.")
    return lines


def _change_cells(change: SweepChange) -> list[str]:
    better = (change.ratio.value < 1) == change.less_is_better
    cells = [change.point, change.figure, shown(change.old), shown(change.new), ratio_cell(change.ratio)]
    return [*cells, "better" if better else "worse"]


def _differences(old: Row, new: Row) -> Iterator[tuple[str, Any, Any]]:
    def flat(found: Row) -> Mapping[str, Any]:
        parts = {name: found[name] for name in ("config", "overrides", "device", "warm_up", "steps", "seed")}
        return parts | found["machine"] | found["versions"]

    was, now = flat(old), flat(new)
    for name in dict.fromkeys([*was, *now]):
        if was.get(name) != now.get(name):
            yield name, was.get(name), now.get(name)
    highest = [
        max((load for row in side["points"] for load in values(row, "load")), default=0.0) for side in (old, new)
    ]
    if max(highest) > 2 * min(highest) + 1:
        yield "load average, highest", f"{highest[0]:.1f}", f"{highest[1]:.1f}"


def _unmatched(old: Row, new: Row) -> list[str]:
    def labels(found: Row) -> dict[tuple[Any, ...], str]:
        return {tuple(row["settings"].items()): row["label"] for row in found["points"]}

    was, now = labels(old), labels(new)
    gone = [f"only in the old: {label}" for key, label in was.items() if key not in now]
    return gone + [f"only in the new: {label}" for key, label in now.items() if key not in was]
